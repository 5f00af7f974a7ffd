# SPDX-License-Identifier: GPL-2.0-or-later
"""What only the qube does that a device is attached to."""
