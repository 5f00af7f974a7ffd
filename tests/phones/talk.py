#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs in a guest: sends data to the phone over usbfs, and fails unless the same comes back."""

import ctypes
import fcntl
import os
import sys
from pathlib import Path

ROUNDS, SIZE, MILLISECONDS = 8, 8192, 10_000

# linux/usbdevice_fs.h
CLAIM_INTERFACE, RELEASE_INTERFACE, BULK = 0x8004550F, 0x80045510, 0xC0185502


class Bulk(ctypes.Structure):
    """struct usbdevfs_bulktransfer."""

    _fields_ = (
        ("endpoint", ctypes.c_uint),
        ("length", ctypes.c_uint),
        ("timeout", ctypes.c_uint),
        ("data", ctypes.c_void_p),
    )


def transfer(node: int, endpoint: int, data: ctypes.Array[ctypes.c_char]) -> int:
    """One bulk transfer: how many bytes."""
    request = Bulk(endpoint, len(data), MILLISECONDS, ctypes.addressof(data))
    return int(fcntl.ioctl(node, BULK, request))


def endpoints(device: Path) -> tuple[int, int]:
    """The addresses out and in."""
    found = sorted(int(path.name[3:], 16) for path in device.glob("*:1.0/ep_*"))
    return found[0], found[1]


def main(serial: str) -> None:
    """Find the phone by its serial number, and talk to it."""
    for device in Path("/sys/bus/usb/devices").glob("*-*"):
        name = device / "serial"
        if name.exists() and name.read_text().strip() == serial:
            break
    else:
        sys.exit(f"there is no {serial}")
    bus, number = (int((device / name).read_text()) for name in ("busnum", "devnum"))
    node = os.open(f"/dev/bus/usb/{bus:03}/{number:03}", os.O_RDWR)
    fcntl.ioctl(node, CLAIM_INTERFACE, bytes(4))
    out, back = endpoints(device)
    for _ in range(ROUNDS):
        sent = os.urandom(SIZE)
        assert transfer(node, out, ctypes.create_string_buffer(sent, SIZE)) == SIZE
        got = ctypes.create_string_buffer(SIZE)
        assert transfer(node, back, got) == SIZE
        assert got.raw == sent
    fcntl.ioctl(node, RELEASE_INTERFACE, bytes(4))


if __name__ == "__main__":
    main(sys.argv[1])
