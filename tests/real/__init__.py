# SPDX-License-Identifier: GPL-2.0-or-later
"""With the real sources and programs of other projects, which the caller has fetched or built."""
