# SPDX-License-Identifier: GPL-2.0-or-later
"""What runs in the one guest whose clock counts instructions, see tests/lab/virtual.py."""
