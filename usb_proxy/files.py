# SPDX-License-Identifier: GPL-2.0-or-later
"""The door to files, by path and by FD: with `host` and `sockets` the only one to the system.

`posix` is `os` without its half in Python, which would be a tenth of a program's start.
"""

from __future__ import annotations

import errno
import fcntl
import posix as os

from usb_proxy.errors import SystemLackError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Iterator
else:
    import _signal as signal  # See host.

READ_LIMIT = 16384
ALARM_SECONDS = 0.1


def inode(state: os.stat_result) -> str:
    """A file as the kernel names it in /proc/locks (fs/locks.c, lock_get_status)."""
    return f"{os.major(state.st_dev):02x}:{os.minor(state.st_dev):02x}:{state.st_ino}"


class Files:
    """What is below `root`, which is put before every path; OSError as the kernel says.

    A path in a `directory`, the FD of an open folder, has no root. Whoever opens closes.
    """

    def __init__(self, root: str = "") -> None:
        self.root = root

    def read(self, path: str, directory: int | None = None) -> str:
        """The text of a small file, at most 16 KiB."""
        return self.read_bytes(path, directory).decode("ascii", "replace")

    def read_bytes(self, path: str, directory: int | None = None) -> bytes:
        """The same of a file that is no text."""
        fd = self._open(path, directory)
        try:
            return os.read(fd, READ_LIMIT)
        finally:
            os.close(fd)

    def read_long(self, path: str, limit: int) -> bytes:
        """The same up to `limit` bytes. A read of sysfs gives a page at most (fs/kernfs/file.c)."""
        fd, data = self._open(path), b""
        try:
            while part := os.read(fd, limit - len(data)):
                data += part
            return data
        finally:
            os.close(fd)

    def read_lines(self, path: str) -> Iterator[str]:
        """The lines of a file of root's, which may be long, a link, or a pipe without anybody."""

        def opener(file: str, flags: int) -> int:
            return os.open(file, flags | os.O_NONBLOCK)

        with open(self.root + path, encoding="ascii", errors="replace", opener=opener) as file:
            yield from file

    def _open(self, path: str, directory: int | None = None) -> int:
        """Open a file to read, whatever was planted in its place: a pipe must not hold us up."""
        where = self.root + path if directory is None else path
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        return os.open(where, flags, dir_fd=directory)

    def write(self, path: str, text: str, directory: int | None = None) -> None:
        """Write `text` to a file of sysfs, in one piece; SystemLackError where it is read-only."""
        where = self.root + path if directory is None else path
        try:
            fd = os.open(where, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            raise SystemLackError("UP-764") from error
        try:
            os.write(fd, text.encode("ascii"))
        finally:
            os.close(fd)

    def make_file(self, path: str, text: str) -> None:
        """Make a file of root's own folder, or write it anew; every user may read it."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(self.root + path, flags, 0o644)
        try:
            os.fchmod(fd, 0o644)  # whatever the umask is
            os.write(fd, text.encode("ascii"))
        finally:
            os.close(fd)

    def replace_file(self, file: str, fresh: str, text: str) -> None:
        """The same, whole or not at all: it is made as `fresh`, which must not be there."""
        fd = os.open(self.root + fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.fchmod(fd, 0o644)
            os.write(fd, text.encode("ascii"))
            self.rename(fresh, file)
        except OSError:
            os.unlink(self.root + fresh)
            raise
        finally:
            os.close(fd)

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, in place of what had that."""
        os.rename(self.root + old, self.root + new)

    def remove(self, path: str) -> None:
        """Remove a file, if it is there; a folder that was planted in its place is none."""
        try:
            os.unlink(self.root + path)
        except (FileNotFoundError, IsADirectoryError):
            pass
        except OSError:
            # A read-only file system says so before it looks for the file.
            if self.exists(path):
                raise

    def exists(self, path: str, directory: int | None = None) -> bool:
        """Whether there is something at `path`."""
        try:
            os.lstat(self.root + path if directory is None else path, dir_fd=directory)
        except OSError:
            return False
        return True

    def details(self, file: str, follows: bool = False) -> os.stat_result:
        """What there is to know of a file: of a link itself, unless one `follows` it."""
        return (os.stat if follows else os.lstat)(self.root + file)

    def is_executable(self, file: str) -> bool:
        """Whether this process may run a file."""
        return os.access(self.root + file, os.X_OK)

    def listing(self, path: str) -> list[str]:
        """The sorted names in a folder; none if there is no such folder."""
        try:
            return sorted(os.listdir(self.root + path))
        except FileNotFoundError:
            return []

    def make_folder(self, folder: str) -> None:
        """Make a folder of root's own that every user may read, if it is not there."""
        try:
            os.mkdir(self.root + folder, 0o755)
            os.chmod(self.root + folder, 0o755)  # Whatever the umask is.
        except FileExistsError:
            pass

    # Links.

    def read_link(self, link: str, directory: int | None = None) -> str:
        """Where a link leads."""
        return os.readlink(self.root + link if directory is None else link, dir_fd=directory)

    def make_link(self, link: str, text: str) -> None:
        """Make a link, which may lead nowhere: then it is a text that is there whole or not."""
        os.symlink(text, self.root + link)

    def place(self, fd: int) -> str:
        """The path of what is open, without links, and with ` (deleted)` once it has gone."""
        return os.readlink(f"/proc/self/fd/{fd}").removeprefix(self.root)

    # What is open.

    def open_folder(self, folder: str) -> int:
        """An FD of a folder, which leads to no other when the name is given to one."""
        return os.open(self.root + folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def open_node(self, node: str, writes: bool = False, claims: bool = False) -> int:
        """An FD of a device's node. Who `claims` a disk has it alone (open(2), O_EXCL).

        That moves no tray, and needs no medium (drivers/cdrom/cdrom.c, cdrom_open).
        """
        flags = (os.O_RDWR if writes else os.O_RDONLY) | (os.O_EXCL | os.O_NONBLOCK) * claims
        return os.open(self.root + node, flags | os.O_CLOEXEC)

    def control(self, fd: int, request: int, argument: int | bytes = 0) -> None:
        """An ioctl(2) of an open device node."""
        fcntl.ioctl(fd, request, argument)

    def close_all(self, *fds: int) -> None:
        """Close FDs."""
        for fd in fds:
            os.close(fd)

    def pipe(self) -> tuple[int, int]:
        """A pipe, of which no child has an end: where it is read, and where it is written."""
        return os.pipe()

    def inherit(self, fd: int, does: bool) -> None:
        """Whether children have an FD; OSError if that is none."""
        os.set_inheritable(fd, does)

    def open_standard(self) -> None:
        """Open stdin, stdout and stderr to nowhere, where somebody has closed them.

        What is opened first would be taken for it, and be written to.
        """
        for fd in (0, 1, 2):
            try:
                os.fstat(fd)
            except OSError:
                os.open("/dev/null", os.O_RDWR)

    # Locks of processes (fcntl(2), POSIX locks), in files that root alone may open.

    def open_lock(self, file: str, makes: bool) -> int:
        """An FD of a file for a lock, made if it `makes` one."""
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_CREAT * makes
        return os.open(self.root + file, flags, 0o600)

    def lock(self, fd: int) -> bool:
        """Lock an open file: False when another process has it."""
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def await_lock(self, fd: int, seconds: float) -> None:
        """Sleep until the holder of an open file's lock lets go, which gives it to us, or so long.

        No stop signal is noticed meanwhile, and the alarm is not taken for one.
        """
        waits = True

        def expire(_number: int, _frame: object) -> None:
            nonlocal waits
            if waits:
                waits = False
                raise TimeoutError

        handler, timer = signal.signal(signal.SIGALRM, expire), (0.0, 0.0)
        mask, wakeup = signal.pthread_sigmask(signal.SIG_BLOCK, ()), signal.set_wakeup_fd(-1)
        try:
            # Again and again: one that comes just before the wait does not end it.
            timer = signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001), ALARM_SECONDS)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGALRM,))
            fcntl.lockf(fd, fcntl.LOCK_EX)
        except TimeoutError:
            pass
        finally:
            waits = False
            signal.setitimer(signal.ITIMER_REAL, *timer)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            signal.signal(signal.SIGALRM, handler)
            signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)

    def lock_holder(self, fd: int) -> int | None:
        """The pid of the other process that has locked an open file, by the kernel's word."""
        import struct  # noqa: PLC0415 (who finds a lock free needs none)

        # struct flock with 64-bit offsets: type, whence (0: the start), start, length, pid.
        question = struct.pack("hhqqi0q", fcntl.F_WRLCK, 0, 0, 0, 0)
        answer = struct.unpack("hhqqi0q", fcntl.fcntl(fd, fcntl.F_GETLK, question))
        return None if answer[0] == fcntl.F_UNLCK else int(answer[4])

    def is_named(self, fd: int, file: str) -> bool:
        """Whether an open file is still the one of that name."""
        try:
            named, mine = os.stat(self.root + file), os.fstat(fd)
        except FileNotFoundError:
            return False
        return (named.st_dev, named.st_ino) == (mine.st_dev, mine.st_ino)

    def is_read_only(self, folder: str) -> bool:
        """Whether nothing can be written there, by root either: it is mounted like that."""
        return bool(os.statvfs(self.root + folder).f_flag & os.ST_RDONLY)

    def size(self, fd: int) -> int:
        """How many bytes an open file has."""
        return os.fstat(fd).st_size

    def read_open(self, fd: int, limit: int) -> bytes:
        """At most so many bytes of what is open, from where it was read last."""
        return os.read(fd, limit)

    def write_open(self, fd: int, data: bytes) -> int:
        """Write to what is open: how many bytes it took."""
        return os.write(fd, data)

    def note(self, fd: int, line: str) -> None:
        """Write over the start of an open file in one call; without a line, empty it."""
        if line:
            os.pwrite(fd, line.encode("ascii"), 0)
        else:
            os.ftruncate(fd, 0)
