# SPDX-License-Identifier: GPL-2.0-or-later
"""What runs inside a guest of the lab; `wire` is shared with the host."""
