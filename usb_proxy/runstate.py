# SPDX-License-Identifier: GPL-2.0-or-later
"""Locks and records of what is attached.

The kernel's lock is the truth: who holds it is alive and in charge. What its file says was
written by root, and is what a dead holder left. Records in /run/qubes are for other programs.
"""

from __future__ import annotations

import fcntl
import posix as os
import select
import struct

from usb_proxy.errors import SystemLackError, reason
from usb_proxy.host import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usb_proxy.host import Host
    from usb_proxy.idents import BusId, DomainName, Target

LOCKS = "/run/qubes-usb-proxy"
"""Root's own: in /run/qubes the group `qubes` may rename and plant files."""

EXPORT = "export-"
IMPORT = "import-"
NOTE_LIMIT = 100
NOTICE = ".notice"

RECORDS = "/run/qubes"
RECORD_PREFIX = "usb-import-"
RECORD_SUFFIX = ".state"

_FLOCK = "hhqqi0q"
"""struct flock of fcntl(2) with 64-bit offsets: type, whence (0: the start), start, length, pid."""


class Lock:
    """A lock of one name, a context manager once it is acquired.

    It ends with the process whatever ends that, and no child inherits it (fcntl(2), POSIX locks).
    `leftover` is what the last holder noted, if it died or could not clean up.
    """

    def __init__(self, host: Host, name: str) -> None:
        self._host = host
        self.name = name
        self._path = f"{host.root}{LOCKS}/{name}.lock"
        self._notice = f"{host.root}{LOCKS}/{name}{NOTICE}"
        self._fd = -1
        self.leftover = ""

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        """Give the lock up, and its file with it unless it still has a note."""
        if os.fstat(self._fd).st_size == 0:
            _remove(self._notice)
            os.unlink(self._path)
        self._close()

    def acquire(self, seconds: float) -> bool:
        """Take the lock: False when another process still has it after `seconds`."""
        deadline = self._host.now() + seconds
        while True:
            self._open(os.O_CREAT)
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_current():
                    self.leftover = os.read(self._fd, NOTE_LIMIT).decode("ascii", "replace")
                    return True
            except (BlockingIOError, PermissionError):
                if self._host.now() >= deadline:
                    self._close()
                    return False
                holder = self._holder()
                if holder is not None:
                    await_end(self._host, holder, deadline)

    def note(self, text: str) -> None:
        """Note for whoever comes later what there is to clean up; nothing, once that is done."""
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, text.encode("ascii"), 0)

    def tell(self, text: str) -> None:
        """Let every user know what the lock is held for; it goes with the lock's file.

        Not in that file, which nobody else may open: who can read it can lock it, and keep root
        out. A link that leads nowhere is there whole or not at all, and cannot be locked.
        """
        try:
            _remove(self._notice)
            os.symlink(text, self._notice)
        except OSError as error:
            raise SystemLackError("UP-717", path=self._notice, reason=reason(error)) from error

    def stop_holder(self) -> int | None:
        """Ask the process that holds the lock to end: a pidfd for `await_end`, or None."""
        if not self._open():
            return None
        try:
            holder = self._holder()
            if holder is not None:
                try:
                    signal.pidfd_send_signal(holder, signal.SIGTERM)
                    signal.pidfd_send_signal(holder, signal.SIGCONT)  # Stopped, it would not hear.
                except ProcessLookupError:
                    pass  # It has ended meanwhile, which is what was asked of it.
            return holder
        finally:
            self._close()

    def holders_note(self) -> str | None:
        """What the process noted that holds the lock now, or None if none does."""
        if not self._open():
            return None
        try:
            note = os.read(self._fd, NOTE_LIMIT).decode("ascii", "replace")
            return None if self._holder_pid() is None else note
        finally:
            self._close()

    def _holder(self) -> int | None:
        """A pidfd of the process that holds the lock, by the kernel's word, or None."""
        while True:
            pid = self._holder_pid()
            if pid is None:
                return None
            try:
                handle = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            # The number may have passed to another process before the pidfd was there.
            if self._holder_pid() == pid:
                return handle
            os.close(handle)

    def _holder_pid(self) -> int | None:
        question = struct.pack(_FLOCK, fcntl.F_WRLCK, 0, 0, 0, 0)
        answer = struct.unpack(_FLOCK, fcntl.fcntl(self._fd, fcntl.F_GETLK, question))
        return None if answer[0] == fcntl.F_UNLCK else int(answer[4])

    def _open(self, create: int = 0) -> bool:
        """Open the file: False if there is none and it is not to be made (O_CREAT)."""
        self._close()
        try:
            if create:
                self._make_folder()
            flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | create
            self._fd = os.open(self._path, flags, 0o600)
            return True
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not create:
                return False
            raise SystemLackError("UP-716", path=self._path, reason=reason(error)) from error

    def _make_folder(self) -> None:
        try:
            os.mkdir(self._host.root + LOCKS, 0o755)
        except FileExistsError:
            pass

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _is_current(self) -> bool:
        """Whether the file is still the one of that name: its last holder may have removed it."""
        try:
            named = os.stat(self._path)
        except FileNotFoundError:
            return False
        mine = os.fstat(self._fd)
        return (named.st_dev, named.st_ino) == (mine.st_dev, mine.st_ino)


def await_end(host: Host, holder: int, deadline: float) -> bool:
    """Sleep until the process of a pidfd has ended, and close that: False when time is up."""
    try:
        return bool(host.wait({holder: select.POLLIN}, deadline))
    finally:
        os.close(holder)


def export_lock(host: Host, bus_id: BusId) -> Lock:
    """The lock that an exporter holds for its whole life."""
    return Lock(host, f"{EXPORT}{bus_id}")


def import_lock(host: Host, attachment: str) -> Lock:
    """The lock that an importer holds for its whole life."""
    return Lock(host, f"{IMPORT}{attachment}")


def lock_names(host: Host, prefix: str = "") -> list[str]:
    """The names of the locks that start with `prefix`, held or left by the dead."""
    names = (n.removesuffix(".lock") for n in host.listing(LOCKS) if n.endswith(".lock"))
    return [name for name in names if name.startswith(prefix)]


def notice(host: Host, name: str) -> tuple[str, float]:
    """What the holder of a lock told every user, and when, in seconds since 1970.

    FileNotFoundError when it has told nothing yet.
    """
    path = f"{host.root}{LOCKS}/{name}{NOTICE}"
    return os.readlink(path), os.lstat(path).st_mtime


def attachment_name(backend: DomainName, target: Target) -> str:
    """How a frontend names an attachment; known to other parts of Qubes by its record."""
    return f"{backend}-{target}"


def split_attachment(attachment: str) -> tuple[str, str]:
    """The backend and the device in what `attachment_name` gave."""
    backend, _, device = attachment.rpartition("-")
    if not device.startswith("0x"):
        # A bus id has one dash itself.
        backend, _, bus = backend.rpartition("-")
        device = f"{bus}-{device}"
    return backend, device


def record_path(attachment: str) -> str:
    """The file that says which port an attachment has."""
    return f"{RECORDS}/{RECORD_PREFIX}{attachment}{RECORD_SUFFIX}"


def write_record(host: Host, attachment: str, port: int) -> None:
    """Write the record of an attachment, whole or not at all: the port's number in its line.

    A link or file that was planted in its place is replaced, not followed.
    """
    path = host.root + record_path(attachment)
    fresh = f"{host.root}{RECORDS}/.{RECORD_PREFIX}{attachment}.{os.getpid()}"
    try:
        _remove(fresh)  # Of a process that died here, or planted.
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.write(fd, f"{port}\n".encode("ascii"))
            os.rename(fresh, path)
        except OSError:
            os.unlink(fresh)
            raise
        finally:
            os.close(fd)
    except OSError as error:
        raise SystemLackError("UP-717", path=path, reason=reason(error)) from error


def read_record(host: Host, attachment: str) -> int | None:
    """The port in a record; None if there is none, or nothing that makes sense.

    The group `qubes` may write there: only for attachments of a program that knows no locks.
    """
    try:
        untrusted_port = host.read(record_path(attachment)).partition("\n")[0]
    except OSError:
        return None
    is_number = untrusted_port.isascii() and untrusted_port.isdigit() and len(untrusted_port) < 6
    return int(untrusted_port) if is_number else None


def remove_record(host: Host, attachment: str) -> None:
    """Remove a record, if there is one."""
    path = host.root + record_path(attachment)
    try:
        _remove(path)
    except OSError as error:
        raise SystemLackError("UP-718", path=path, reason=reason(error)) from error


def _remove(path: str) -> None:
    """Remove a file, if it is there; a folder that was planted in its place is none."""
    try:
        os.unlink(path)
    except (FileNotFoundError, IsADirectoryError):
        pass
    except OSError:
        # A read-only file system says so before it looks for the file.
        try:
            os.lstat(path)
        except FileNotFoundError:
            return
        raise
