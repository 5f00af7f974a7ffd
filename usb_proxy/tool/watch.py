# SPDX-License-Identifier: GPL-2.0-or-later
"""Waiting for a change of what `overview` gives.

Whatever happens to an attachment makes one of these: an event of the kernel about a device; the
end of the process in charge; a lock or a notice that appears or goes.
"""

from __future__ import annotations

from usb_proxy import locks
from usb_proxy.errors import SystemLackError, reason
from usb_proxy.folders import Folders
from usb_proxy.host import POLLIN
from usb_proxy.tool import overview
from usb_proxy.uevents import LOST, Uevents

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from usb_proxy.host import Host

RUN = locks.LOCKS.rpartition("/")[0]


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
                host.close_all(*handles)


class Changes:
    """What may change an overview, from now on; a context manager."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._uevents = Uevents()
        self._folders = Folders(host)
        self._has_locks = False

    def __enter__(self) -> Changes:
        return self

    def __exit__(self, *_: object) -> None:
        self._folders.close()
        self._uevents.close()

    def prepare(self) -> list[int]:
        """Listen before somebody looks; gives pidfds of the processes in charge."""
        if not self._has_locks:
            # Without their folder nothing was ever attached: wait for it to be made.
            self._follow(RUN)
            self._has_locks = self._follow(locks.LOCKS)
            if self._has_locks:
                self._folders.leave(RUN)
        handles = []
        for lock in overview.lock_states(self._host):
            try:
                if lock.holder is not None:
                    handles.append(self._host.open_process(lock.holder))
            except ProcessLookupError:
                continue  # It has ended, which is seen when somebody looks now.
        return handles

    def wait(self, handles: list[int]) -> bool:
        """Sleep until something may have changed; False when the output has no reader any more."""
        output, signals = self._host.output, self._folders.fileno()
        events = dict.fromkeys([*handles, signals, self._uevents.fileno()], POLLIN)
        while True:
            ready = self._host.wait({**events, output: 0}, None)
            if output in ready:
                return False
            if signals in ready:
                self._folders.clear()
            # Those of udev, of which nothing is given, come when sysfs is up to date.
            uevents = self._uevents.pending()
            if len(ready) > 1 or self._uevents.fileno() not in ready:
                return True
            if not uevents or any("/usb" in event or event == LOST for event in uevents):
                return True

    def _follow(self, path: str) -> bool:
        """Hear of names that appear in a folder or go; False if there is no such folder."""
        try:
            return self._folders.follow(path)
        except OSError as error:
            raise SystemLackError("UP-720", path=path, reason=reason(error)) from error
