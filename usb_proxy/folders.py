# SPDX-License-Identifier: GPL-2.0-or-later
"""The door to news of folders: of names that appear in them or go.

The kernel tells whoever asked for it with F_NOTIFY by a signal (fcntl(2),
Documentation/filesystems/dnotify.rst).
"""

from __future__ import annotations

import errno
import fcntl
import posix as os

from usb_proxy.host import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usb_proxy.host import Host

_CHANGES = fcntl.DN_CREATE | fcntl.DN_DELETE | fcntl.DN_RENAME | fcntl.DN_MULTISHOT


class Folders:
    """Folders that are followed; `fileno()` is readable once there is news, or a stop signal."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._followed: dict[str, int] = {}
        # Python writes the number of each signal here.
        self._signals, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
        signal.signal(signal.SIGIO, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGIO])

    def close(self) -> None:
        """Follow none any more."""
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        theirs = signal.set_wakeup_fd(-1)
        self._host.close_all(theirs, self._signals, *self._followed.values())

    def fileno(self) -> int:
        """The FD to wait on."""
        return self._signals

    def clear(self) -> None:
        """Take note of the news so far."""
        os.read(self._signals, 4096)

    def follow(self, path: str) -> bool:
        """Hear of a folder from now on: False if there is none. OSError if it may not be read."""
        if path in self._followed:
            return True
        try:
            self._followed[path] = self._host.open_folder(path)
        except FileNotFoundError:
            return False
        try:
            fcntl.fcntl(self._followed[path], fcntl.F_NOTIFY, _CHANGES)
        except OSError as error:
            # A kernel without it: all the same the events of devices and processes tell the most.
            if error.errno != errno.EINVAL:
                raise
        return True

    def leave(self, path: str) -> None:
        """Hear of a folder no more."""
        self._host.close_all(self._followed.pop(path))
