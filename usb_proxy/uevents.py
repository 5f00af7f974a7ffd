# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's announcements of devices that come and go."""

from __future__ import annotations

import _socket
import errno

from usb_proxy.kernel import AF_NETLINK, NETLINK_KOBJECT_UEVENT, UEVENT_GROUPS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

MESSAGE_LIMIT = 8192
"""UEVENT_BUFFER_SIZE is 2048 (include/linux/kobject.h); the header adds a path."""

LOST = "lost"
"""Given instead of an event when the kernel had to drop some."""


class Uevents:
    """Events from now on; a context manager. `fileno()` is readable when there is one."""

    def __init__(self) -> None:
        kind = _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
        self._socket = _socket.socket(AF_NETLINK, kind, NETLINK_KOBJECT_UEVENT)
        self._socket.bind((0, UEVENT_GROUPS))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Listen no more: what nobody reads would fill the kernel's queue."""
        self._socket.close()

    def fileno(self) -> int:
        """The FD to wait on."""
        return self._socket.fileno()

    def pending(self) -> list[str]:
        """What the kernel has said so far, as `ACTION@DEVPATH` (lib/kobject_uevent.c).

        That may be nothing: udev's events, which come when sysfs is up to date, only wake.
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
            # The kernel's own messages have port 0. Any process may send to ours.
            if sender[0] == 0:
                events.append(message.partition(b"\0")[0].decode("ascii", "replace"))
