# SPDX-License-Identifier: GPL-2.0-or-later
"""What a device says of its interfaces, as the kernel that has it understands it."""

from __future__ import annotations

from usb_proxy.kernel import USB_DT_CONFIG, USB_DT_DEVICE_SIZE, USB_DT_INTERFACE

LIMIT = USB_DT_DEVICE_SIZE + 65535
"""What sysfs shows at most (drivers/usb/core/sysfs.c, dev_bin_attr_descriptors)."""


def interfaces(untrusted_descriptors: bytes, value: int | None) -> dict[int, set[str]]:
    """Each interface of a configuration, or of all: by its number what it is in any setting.

    From sysfs' `descriptors`: the device's, then each configuration's (USB 2.0, 9.6). Kinds are
    `CCSSPP` in lower-case hexadecimal. ValueError for what the kernel shows not at all, or in part.

    The kernel goes by each descriptor's length, shows no more than it has understood, and takes a
    second header within a configuration for nothing (drivers/usb/core/config.c,
    usb_parse_configuration). Where there is one, all interfaces count as this configuration's.
    """
    if not USB_DT_DEVICE_SIZE <= len(untrusted_descriptors) < LIMIT:
        raise ValueError
    untrusted_ones = []
    at = USB_DT_DEVICE_SIZE  # The kernel does not ask that one for its length, either.
    while at < len(untrusted_descriptors):
        untrusted_one = untrusted_descriptors[at : at + untrusted_descriptors[at]]
        if not 2 <= len(untrusted_one) == untrusted_descriptors[at]:
            raise ValueError
        untrusted_ones.append(untrusted_one)
        at += len(untrusted_one)
    headers = sum(untrusted_one[1] == USB_DT_CONFIG for untrusted_one in untrusted_ones)
    is_plain = headers == untrusted_descriptors[USB_DT_DEVICE_SIZE - 1]
    found: dict[int, set[str]] = {}
    is_its = every = value is None or not is_plain
    for untrusted_one in untrusted_ones:
        if untrusted_one[1] == USB_DT_CONFIG and len(untrusted_one) > 5:
            is_its = every or untrusted_one[5] == value
        elif untrusted_one[1] == USB_DT_INTERFACE and len(untrusted_one) > 7 and is_its:
            found.setdefault(untrusted_one[2], set()).add(untrusted_one[5:8].hex())
    return found
