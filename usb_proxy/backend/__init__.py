# SPDX-License-Identifier: GPL-2.0-or-later
"""What only the qube does that lends a device: `sys-usb`, for most people."""
