# SPDX-License-Identifier: GPL-2.0-or-later
"""Waiting for a change of what `overview` gives.

Whatever happens to an attachment makes one of these: an event of the kernel about a device; the
end of the process in charge; a lock or a notice that appears or goes, of which the kernel tells
by a signal whoever asked for it with F_NOTIFY (fcntl(2), Documentation/filesystems/dnotify.rst).
"""

from __future__ import annotations

import errno
import fcntl
import os
import select

from usb_proxy import runstate
from usb_proxy.errors import SystemLackError, reason
from usb_proxy.host import signal
from usb_proxy.tool import overview
from usb_proxy.uevents import LOST, Uevents

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from usb_proxy.host import Host

CHANGES = fcntl.DN_CREATE | fcntl.DN_DELETE | fcntl.DN_RENAME | fcntl.DN_MULTISHOT


def watch(host: Host, show: Callable[[object], object]) -> None:
    """Call `show` with what it gave before, at once and after each change.

    Returns when a stop signal comes or nobody reads the output any more.
    """
    state: object = None
    with Changes(host) as changes:
        while not host.stopped_by:
            handles = changes.prepare()
            try:
                state = show(state)
                if not changes.wait(handles):
                    return
            finally:
                for handle in handles:
                    os.close(handle)


class Changes:
    """What may change an overview, from now on; a context manager."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._uevents = Uevents()
        self._folders: dict[str, int] = {}
        # Python writes the number of each signal here; a stop signal wakes in this way, too.
        self._signals, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
        signal.signal(signal.SIGIO, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGIO])

    def __enter__(self) -> Changes:
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        theirs = signal.set_wakeup_fd(-1)
        for fd in (theirs, self._signals, *self._folders.values()):
            os.close(fd)
        self._uevents.close()

    def prepare(self) -> list[int]:
        """Listen before somebody looks; gives pidfds of the processes in charge."""
        if runstate.LOCKS not in self._folders:
            # Without it nothing was ever attached: wait for it to be made.
            if not self._folders:
                self._follow(os.path.dirname(runstate.LOCKS))
            if self._follow(runstate.LOCKS):
                os.close(self._folders.pop(os.path.dirname(runstate.LOCKS)))
        handles = []
        for lock in overview.locks(self._host):
            try:
                if lock.holder is not None:
                    handles.append(os.pidfd_open(lock.holder))
            except ProcessLookupError:
                continue  # It has ended, which is seen when somebody looks now.
        return handles

    def wait(self, handles: list[int]) -> bool:
        """Sleep until something may have changed; False when the output has no reader any more."""
        output = self._host.output
        events = dict.fromkeys([*handles, self._signals, self._uevents.fileno()], select.POLLIN)
        while True:
            ready = self._host.wait({**events, output: 0}, None)
            if output in ready:
                return False
            if self._signals in ready:
                os.read(self._signals, 4096)
            # Those of udev, of which nothing is given, come when sysfs is up to date.
            uevents = self._uevents.pending()
            if len(ready) > 1 or self._uevents.fileno() not in ready:
                return True
            if not uevents or any("/usb" in event or event == LOST for event in uevents):
                return True

    def _follow(self, path: str) -> bool:
        """Hear of names that appear in a folder or go; False if there is no such folder."""
        try:
            fd = os.open(self._host.root + path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise SystemLackError("UP-720", path=path, reason=reason(error)) from error
        self._folders[path] = fd
        try:
            fcntl.fcntl(fd, fcntl.F_NOTIFY, CHANGES)
        except OSError as error:
            # A kernel without it: all the same the events of devices and processes tell the most.
            if error.errno != errno.EINVAL:
                raise
        return True
