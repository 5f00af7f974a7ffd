# SPDX-License-Identifier: GPL-2.0-or-later
"""The door to sockets."""

from __future__ import annotations

import _socket
import posix as os

from usb_proxy.kernel import NETLINK_KOBJECT_UEVENT, UEVENT_GROUPS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usb_proxy.files import Files

Socket = _socket.socket
_QUIET = _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK


def duplicate(fd: int) -> Socket | None:
    """A stream socket of ours for the same connection; None if the FD is none."""
    try:
        copy = _socket.socket(fileno=os.dup(fd))
    except OSError:
        return None
    return copy if copy.type == _socket.SOCK_STREAM else None


def pair() -> tuple[Socket, Socket]:
    """Two ends of a connection that nobody else has."""
    return _socket.socketpair()


def uevents() -> Socket:
    """A socket on which the kernel and udev announce devices from now on."""
    link = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_DGRAM | _QUIET, NETLINK_KOBJECT_UEVENT)
    link.bind((0, UEVENT_GROUPS))
    return link


def send(files: Files, path: str, data: bytes) -> None:
    """Send a datagram to whoever listens at `path`; OSError if nobody does, or is too slow."""
    link = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _QUIET)
    try:
        link.sendto(data, files.root + path)
    finally:
        link.close()
