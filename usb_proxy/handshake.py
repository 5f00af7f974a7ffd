# SPDX-License-Identifier: GPL-2.0-or-later
"""The one line that the backend sends before the two kernels talk: `DEVID SPEED\\n`."""

from __future__ import annotations

from usb_proxy.errors import PeerError, printable
from usb_proxy.kernel import SPEEDS

LINE_LIMIT = 80
"""Bytes with the line's end; DEVID and SPEED take 20 at most, the rest is for a third field."""

_DEVID_LIMIT = 2**32


class Offer:
    """What the backend offers: `devid`, `busnum << 16 | devnum` in its kernel, and a `UsbSpeed`."""

    __slots__ = ("devid", "speed")

    def __init__(self, devid: int, speed: int) -> None:
        self.devid = devid
        self.speed = speed


def encode(devid: int, speed: str) -> bytes:
    """The line for a device; `speed` is the text of its sysfs file of that name."""
    return f"{devid} {speed}\n".encode("ascii")


def decode(untrusted_line: bytes) -> Offer:
    """The offer in a whole line; PeerError for anything that is none.

    A third field is reserved, and ignored.
    """
    shown = printable(untrusted_line, 60)
    if not untrusted_line.endswith(b"\n") or len(untrusted_line) > LINE_LIMIT:
        raise PeerError("UP-601", answer=shown)
    untrusted_fields = untrusted_line[:-1].split(b" ", 2)
    if not untrusted_line.isascii() or len(untrusted_fields) < 2:
        raise PeerError("UP-602", answer=shown)
    untrusted_devid, untrusted_speed = untrusted_fields[:2]
    if not (untrusted_devid.isdigit() and len(untrusted_devid) <= 10):
        raise PeerError("UP-603", answer=shown)
    devid = int(untrusted_devid)
    if not (devid < _DEVID_LIMIT and devid >> 16 and devid & 0xFFFF):
        raise PeerError("UP-604", answer=shown)
    speed = SPEEDS.get(untrusted_speed.decode("ascii"))
    if speed is None:
        raise PeerError("UP-605", answer=shown)
    return Offer(devid, speed)
