# SPDX-License-Identifier: GPL-2.0-or-later
"""The programs: each module has one `main(arguments, host) -> int`, and none uses another."""
