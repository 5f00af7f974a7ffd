# SPDX-License-Identifier: GPL-2.0-or-later
"""Built on each Debian, and installed on each: nothing of the host is used but its kernel."""
