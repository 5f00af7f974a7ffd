# SPDX-License-Identifier: GPL-2.0-or-later
"""Carries one USB device from one qube to another: USB/IP over qrexec."""
