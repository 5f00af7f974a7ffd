# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices that leave the bus when they are attached, in the lab."""
