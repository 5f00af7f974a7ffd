# SPDX-License-Identifier: GPL-2.0-or-later
"""Locks of what is attached: the kernel's lock is the truth.

Who holds it is alive and in charge. What its file says was written by root, and is what a dead
holder left.
"""

from __future__ import annotations

from usb_proxy.errors import RequestError, SystemLackError, reason
from usb_proxy.host import POLLIN
from usb_proxy.idents import Attachment, BusId

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usb_proxy.host import Host

LOCKS = "/run/qubes-usb-proxy"
"""Root's own: in /run/qubes the group `qubes` may rename and plant files."""

EXPORT = "export-"
IMPORT = "import-"
NOTE_LIMIT = 100
NOTICE = ".notice"


class Lock:
    """A lock of one name, a context manager once it is acquired.

    It ends with the process whatever ends that, and no child inherits it (fcntl(2), POSIX locks).
    `leftover` is what the last holder noted, if it died or could not clean up.
    """

    def __init__(self, host: Host, name: str) -> None:
        self._host = host
        self.name = name
        self._path = f"{LOCKS}/{name}.lock"
        self._notice = f"{LOCKS}/{name}{NOTICE}"
        self._fd = -1
        self.leftover = ""

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        """Give the lock up, and its file with it unless it still has a note."""
        if self._host.size(self._fd) == 0:
            self._host.remove(self._notice)
            self._host.remove(self._path)
        self._close()

    def acquire(self, seconds: float, passes: bool = False) -> bool:
        """Take the lock: False when another process still has it after `seconds`.

        Its holders end with it, or it `passes` from one that goes on to the next.
        """
        deadline = self._host.now() + seconds
        while True:
            self._open(makes=True)
            if self._host.lock(self._fd):
                # Its last holder may have removed the file.
                if self._host.is_named(self._fd, self._path):
                    self.leftover = self._noted()
                    return True
            elif self._host.now() >= deadline:
                self._close()
                return False
            elif passes:
                self._host.await_lock(self._fd, deadline - self._host.now())
            elif (holder := self._holder()) is not None:
                await_end(self._host, holder, deadline)

    def note(self, text: str) -> None:
        """Note for whoever comes later what there is to clean up; nothing, once that is done.

        In one call, so that whoever dies leaves this line or the one before. What follows it is of
        longer ones.
        """
        self._host.note(self._fd, f"{text}\n" if text else "")

    def tell(self, text: str) -> None:
        """Let every user know what the lock is held for; it goes with the lock's file.

        Not in that file, which nobody else may open: who can read it can lock it, and keep root
        out. A link that leads nowhere is there whole or not at all, and cannot be locked.
        """
        try:
            self._host.remove(self._notice)
            self._host.make_link(self._notice, text)
        except OSError as error:
            raise SystemLackError("UP-717", path=self._notice, reason=reason(error)) from error

    def stop_holder(self) -> int | None:
        """Ask the process that holds the lock to end: a pidfd for `await_end`, or None."""
        if not self._open():
            return None
        try:
            holder = self._holder()
            if holder is not None:
                self._host.ask_to_end(holder)
            return holder
        finally:
            self._close()

    def holders_note(self) -> str | None:
        """What the process noted that holds the lock now, or None if none does."""
        if not self._open():
            return None
        try:
            note = self._noted()
            return None if self._host.lock_holder(self._fd) is None else note
        finally:
            self._close()

    def _noted(self) -> str:
        return (
            self._host.read_open(self._fd, NOTE_LIMIT).decode("ascii", "replace").partition("\n")[0]
        )

    def _holder(self) -> int | None:
        """A pidfd of the process that holds the lock, by the kernel's word, or None."""
        while True:
            pid = self._host.lock_holder(self._fd)
            if pid is None:
                return None
            try:
                handle = self._host.open_process(pid)
            except ProcessLookupError:
                continue
            # The number may have passed to another process before the pidfd was there.
            if self._host.lock_holder(self._fd) == pid:
                return handle
            self._host.close_all(handle)

    def _open(self, makes: bool = False) -> bool:
        """Open the file: False if there is none and it is not to be made."""
        self._close()
        try:
            if makes:
                self._host.make_folder(LOCKS)
            self._fd = self._host.open_lock(self._path, makes)
            return True
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not makes:
                return False
            raise SystemLackError("UP-716", path=self._path, reason=reason(error)) from error

    def _close(self) -> None:
        if self._fd >= 0:
            self._host.close_all(self._fd)
            self._fd = -1


def await_end(host: Host, holder: int, deadline: float) -> bool:
    """Sleep until the process of a pidfd has ended, and close that: False when time is up."""
    try:
        return bool(host.wait({holder: POLLIN}, deadline))
    finally:
        host.close_all(holder)


def export_lock(host: Host, bus_id: BusId) -> Lock:
    """The lock that an exporter holds for its whole life."""
    return Lock(host, f"{EXPORT}{bus_id}")


def import_lock(host: Host, attachment: Attachment) -> Lock:
    """The lock that an importer holds for its whole life."""
    return Lock(host, f"{IMPORT}{attachment}")


def subject(name: str) -> BusId | Attachment:
    """What the lock of a name is for: an export, or an import; RequestError if for neither."""
    if name.startswith(EXPORT):
        return BusId(name.removeprefix(EXPORT))
    return Attachment(name.removeprefix(IMPORT))


def lock_names(host: Host, prefix: str = "") -> list[str]:
    """The names of the locks that start with `prefix`, held or left by the dead.

    Of exports and imports alone: what else lies there is skipped.
    """
    found = []
    for file in host.listing(LOCKS):
        name = file.removesuffix(".lock")
        if name != file and name.startswith(prefix):
            try:
                subject(name)
            except RequestError:
                continue
            found.append(name)
    return found


def notice(host: Host, name: str) -> tuple[str, float]:
    """What the holder of a lock told every user, and when, in seconds since 1970.

    FileNotFoundError when it has told nothing yet.
    """
    link = f"{LOCKS}/{name}{NOTICE}"
    return host.read_link(link), host.details(link).st_mtime
