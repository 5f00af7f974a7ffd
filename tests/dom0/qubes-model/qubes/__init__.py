# SPDX-License-Identifier: GPL-2.0-or-later
"""A model of the part of qubes-core-admin that the extension uses; test_model.py compares them."""

from qubes import device_protocol, devices, events, exc, ext, vm

__all__ = ["device_protocol", "devices", "events", "exc", "ext", "vm"]
