# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's announcements of devices that come and go."""

from __future__ import annotations

import errno
import sys

from usb_proxy import sockets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

MESSAGE_LIMIT = 8192
"""UEVENT_BUFFER_SIZE is 2048 (include/linux/kobject.h); the header adds a path."""

_SOL_SOCKET, _SO_ATTACH_FILTER = 1, 26
"""asm-generic/socket.h."""

_LOAD_WORD, _LOAD_BYTE, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x30, 0x15, 0x06
"""BPF_LD|BPF_ABS|BPF_W, the same with BPF_B, BPF_JMP|BPF_JEQ, BPF_RET; linux/bpf_common.h."""

LOST = "lost"
"""Given instead of an event when the kernel had to drop some."""

UDEV = "udev:"
"""Before what udev announces."""

_UDEV_MAGIC = b"libudev\0\xfe\xed\xca\xfe"
_UDEV_OFFSET = slice(16, 20)
"""How udev's messages begin, and where they say at which byte the properties do (systemd,
src/libsystemd/sd-device/device-monitor.c, struct monitor_netlink_header)."""


class Uevents:
    """Events from now on; a context manager. `fileno()` is readable when there is one."""

    def __init__(self) -> None:
        self._socket = sockets.uevents()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Listen no more: what nobody reads would fill the kernel's queue."""
        self._socket.close()

    def hear_only(self, *wanted: str) -> None:
        """Let these events of the kernel through: no other wakes who waits for them.

        Each is `ACTION@DEVPATH`, and with a `/` behind that all below. What was queued before is
        still there. Where the kernel takes no filter all are heard, as before.
        """
        import struct  # noqa: PLC0415 (who is about to sleep has the time)
        from array import array  # noqa: PLC0415

        program = array("B", b"".join(map(_let_through, wanted)) + _instruction(_RETURN, 0))
        address, size = program.buffer_info()
        described = struct.pack("HP", size // 8, address)
        try:
            self._socket.setsockopt(_SOL_SOCKET, _SO_ATTACH_FILTER, described)
        except OSError:
            pass

    def fileno(self) -> int:
        """The FD to wait on."""
        return self._socket.fileno()

    def pending(self) -> list[str]:
        """What the kernel has said so far, as `ACTION@DEVPATH` (lib/kobject_uevent.c).

        Also what udev has announced, with `UDEV` before it: it has made the nodes by then. Nobody
        but root can send either (net/netlink/af_netlink.c, NL_CFG_F_NONROOT_SEND).
        """
        events: list[str] = []
        while True:
            try:
                message, sender = self._socket.recvfrom(MESSAGE_LIMIT)
            except BlockingIOError:
                return events
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                events.append(LOST)
                continue
            if sender[0] == 0:  # The kernel's own port.
                events.append(message.partition(b"\0")[0].decode("ascii", "replace"))
            elif message.startswith(_UDEV_MAGIC):
                properties = message[int.from_bytes(message[_UDEV_OFFSET], sys.byteorder) :]
                found = dict(p.split(b"=", 1) for p in properties.split(b"\0") if b"=" in p)
                place = found.get(b"ACTION", b"") + b"@" + found.get(b"DEVPATH", b"")
                events.append(UDEV + place.decode("ascii", "replace"))


def _let_through(wanted: str) -> bytes:
    """Instructions that let an event through, and go on behind their end with any other.

    A message that is too short for a load is dropped at once (net/core/filter.c); no event is
    shorter than the name of another, as all of its properties follow.
    """
    expected = wanted.encode("ascii") + b"\0" * (not wanted.endswith("/"))
    words = len(expected) // 4
    loads = [(_LOAD_WORD, 4 * at, expected[4 * at : 4 * at + 4]) for at in range(words)]
    loads += [(_LOAD_BYTE, at, expected[at : at + 1]) for at in range(4 * words, len(expected))]
    program = b""
    for number, (load, at, value) in enumerate(loads):
        program += _instruction(load, at)
        otherwise = 2 * (len(loads) - number) - 1
        program += _instruction(_JUMP_IF_EQUAL, int.from_bytes(value, "big"), 0, otherwise)
    return program + _instruction(_RETURN, 0xFFFFFFFF)


def _instruction(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """A `struct sock_filter`, linux/filter.h."""
    jumps = bytes((if_true, if_false))
    return code.to_bytes(2, sys.byteorder) + jumps + operand.to_bytes(4, sys.byteorder)
