# SPDX-License-Identifier: GPL-2.0-or-later
"""How evenly a stream of packets flows to a sound card: over usbfs, so that nothing else paces it.

The structures and numbers are those of linux/usbdevice_fs.h on a 64-bit computer.
"""

import ctypes
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

from . import machine
from .cases import Row, rest
from .cost import BUFFERS
from .floor import Floor
from .qubes import Qubes

CARD = "1-2"
INTERFACE, ALTERNATE, ENDPOINT = 1, 1, 1
"""Where QEMU's sound card takes 48 kHz stereo, a packet each millisecond (hw/usb/dev-audio.c)."""

PACKET_BYTES = 192
PACKETS = 8
IN_FLIGHT = 4
WARM_UP = 20

SET_INTERFACE, SUBMIT, REAP, DISCONNECT_CLAIM = 0x80085504, 0x8038550A, 0x4008550C, 0x8108551B
ISOCHRONOUS, AS_SOON_AS_POSSIBLE = 0, 2


class Packet(ctypes.Structure):
    """struct usbdevfs_iso_packet_desc."""

    _fields_ = [(n, ctypes.c_uint) for n in ("length", "actual_length", "status")]


class Urb(ctypes.Structure):
    """struct usbdevfs_urb, with its packets."""

    _fields_ = [
        ("type", ctypes.c_ubyte),
        ("endpoint", ctypes.c_ubyte),
        ("status", ctypes.c_int),
        ("flags", ctypes.c_uint),
        ("buffer", ctypes.c_void_p),
        ("buffer_length", ctypes.c_int),
        ("actual_length", ctypes.c_int),
        ("start_frame", ctypes.c_int),
        ("number_of_packets", ctypes.c_int),
        ("error_count", ctypes.c_int),
        ("signr", ctypes.c_uint),
        ("usercontext", ctypes.c_void_p),
        ("packets", Packet * PACKETS),
    ]


_libc = ctypes.CDLL(None, use_errno=True)


def ioctl(fd: int, request: int, argument: "ctypes._CData") -> None:
    """ioctl(2) with the argument itself: the kernel keeps the address of a request."""
    if _libc.ioctl(fd, ctypes.c_ulong(request), ctypes.byref(argument)):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def completions(folder: Path, count: int) -> list[float]:
    """Play silence: the milliseconds from each completed request of `PACKETS` to the next.

    `folder` is the device's in sysfs. RuntimeError when a request fails.
    """
    bus, device = (int((folder / name).read_text()) for name in ("busnum", "devnum"))
    fd = os.open(f"/dev/bus/usb/{bus:03}/{device:03}", os.O_RDWR)
    silence = ctypes.create_string_buffer(PACKETS * PACKET_BYTES)
    urbs = []
    try:
        ioctl(fd, DISCONNECT_CLAIM, (ctypes.c_uint * 66)(INTERFACE))
        ioctl(fd, SET_INTERFACE, (ctypes.c_uint * 2)(INTERFACE, ALTERNATE))
        for _ in range(IN_FLIGHT):
            urb = Urb(
                type=ISOCHRONOUS,
                endpoint=ENDPOINT,
                flags=AS_SOON_AS_POSSIBLE,
                buffer=ctypes.addressof(silence),
                buffer_length=PACKETS * PACKET_BYTES,
                number_of_packets=PACKETS,
            )
            for packet in urb.packets:
                packet.length = PACKET_BYTES
            urbs.append(urb)
            ioctl(fd, SUBMIT, urb)
        times = []
        for _ in range(WARM_UP + count + 1):
            done = ctypes.c_void_p()
            ioctl(fd, REAP, done)
            times.append(time.monotonic())
            (urb,) = (u for u in urbs if ctypes.addressof(u) == done.value)
            if urb.status or urb.error_count:
                raise RuntimeError(f"status {urb.status}, {urb.error_count} packets failed")
            ioctl(fd, SUBMIT, urb)
    finally:
        os.close(fd)
    return [1e3 * (after - before) for before, after in itertools.pairwise(times[WARM_UP:])]


def row(where: str, times: list[float]) -> Row:
    """A row of the table: what matters is its range."""
    return f"isochronous stream, {where}, ms from 8 packets to the next", times


def floor(count: int) -> Iterator[Row]:
    """Without USB/IP, and through plain sockets with buffers of several sizes."""
    yield row("in the backend itself", completions(machine.DEVICES / CARD, count))
    machine.settle()
    for name, size in BUFFERS.items():
        low = Floor()
        low.attach(CARD, size)
        machine.settle()
        yield row(f"{name} buffers", completions(low.folder(), count))
        low.detach(CARD)
        machine.await_free_ports()


def attached(qubes: Qubes, count: int) -> Iterator[Row]:
    """As the program attaches it."""
    qubes.attach(CARD)
    machine.settle()
    (folder,) = machine.imported()
    yield row("the usual buffers", completions(folder, count))
    qubes.detach(CARD)
    rest(qubes)
