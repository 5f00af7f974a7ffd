# SPDX-License-Identifier: GPL-2.0-or-later
"""The only door to files, commands, signals and clocks.

`posix` is `os` without its half in Python, which would be a tenth of a program's start.
"""

from __future__ import annotations

import fcntl
import posix as os
import select
import time

from usb_proxy.errors import StoppedError, SystemLackError, printable, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as signal  # noqa: PLC0414 (for other modules, too)
    from collections.abc import Mapping, Sequence
else:
    import _signal as signal  # All of it but the enums, see kernel.py.

COMMAND_PATH = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")
READ_LIMIT = 16384
COMMAND_SECONDS = 10.0
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Host:
    """The machine as this program sees it; tests give another root, environment and FDs.

    `root` is put before every path, `link` is the FD that qrexec calls stdin. `stopped_by` is the
    stop signal that has come, or 0.
    """

    def __init__(
        self,
        root: str = "",
        environment: Mapping[str, str] | None = None,
        link: int = 0,
        errors: int = 2,
        output: int = 1,
    ) -> None:
        self.root = root
        if environment is None:
            ours = os.environ.items()
            environment = {
                name.decode(errors="replace"): text.decode(errors="replace") for name, text in ours
            }
        self.environment = environment
        self.link = link
        self.errors = errors
        self.output = output
        self.stopped_by = 0
        self._wakeup = -1

    # Files. A kernel file gets one write() and never O_CREAT.

    def read(self, path: str, directory: int | None = None) -> str:
        """The text of a small file, at most 16 KiB; OSError as the kernel says."""
        where = self.root + path if directory is None else path
        # O_NONBLOCK: a pipe that was planted in a file's place must not hold us up.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        fd = os.open(where, flags, dir_fd=directory)
        try:
            return os.read(fd, READ_LIMIT).decode("ascii", "replace")
        finally:
            os.close(fd)

    def write(self, path: str, text: str, directory: int | None = None) -> None:
        """Write `text` to a file that exists, in one piece; OSError as the kernel says."""
        where = self.root + path if directory is None else path
        fd = os.open(where, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
        try:
            os.write(fd, text.encode("ascii"))
        finally:
            os.close(fd)

    def control(self, fd: int, request: int, argument: int | bytes = 0) -> None:
        """An ioctl(2) of an open device node; OSError as the kernel says."""
        fcntl.ioctl(fd, request, argument)

    def exists(self, path: str) -> bool:
        """Whether there is something at `path`."""
        try:
            os.lstat(self.root + path)
        except OSError:
            return False
        return True

    def listing(self, path: str) -> list[str]:
        """The sorted names in a folder; none if there is no such folder."""
        try:
            return sorted(os.listdir(self.root + path))
        except FileNotFoundError:
            return []

    # Commands.

    def find_command(self, name: str) -> str | None:
        """The full path of a command in the system's folders, or None."""
        for folder in COMMAND_PATH:
            if os.access(f"{self.root}{folder}/{name}", os.X_OK):
                return f"{self.root}{folder}/{name}"
        return None

    def start(self, command: Sequence[str], errors: int, new_session: bool = False) -> int:
        """Start a command with nothing on stdin and stdout and `errors` as stderr; gives its pid.

        SystemLackError when it is not installed. SIGPIPE stays ignored in it, as Python has it:
        a program that outlives us must not die of a late line on its stderr.
        """
        path = self.find_command(command[0])
        if path is None:
            raise SystemLackError("UP-701", command=command[0])
        actions: list[tuple[int, int, str, int, int] | tuple[int, int, int]] = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, errors, 2),
        ]
        try:
            return os.posix_spawn(
                path,
                list(command),
                {"PATH": ":".join(COMMAND_PATH)},
                file_actions=actions,
                setsigmask=[],
                setsid=new_session,
            )
        except OSError as error:
            raise SystemLackError("UP-702", command=command[0], reason=reason(error)) from error

    def run(self, command: Sequence[str], seconds: float = COMMAND_SECONDS) -> tuple[int, bytes]:
        """Run a command to its end: its exit code (128+N for signal N) and start of its stderr.

        SystemLackError when it is not installed or has not ended after `seconds`.
        """
        ours, theirs = os.pipe()
        try:
            try:
                pid = self.start(command, theirs)
            finally:
                os.close(theirs)
            code = self.reap(pid, self.now() + seconds)
            if code is None:
                raise SystemLackError("UP-703", command=command[0], seconds=seconds)
            os.set_blocking(ours, False)
            try:
                return code, os.read(ours, 4096)
            except BlockingIOError:
                return code, b""
        finally:
            os.close(ours)

    def load_module(self, module: str, appears: str) -> None:
        """Make a kernel driver available, whose sysfs folder is `appears`; or SystemLackError."""
        if self.exists(appears):
            return
        code, untrusted_errors = self.run(["modprobe", module])
        if code or not self.exists(appears):
            said = printable(untrusted_errors) or f"exit code {code}"
            raise SystemLackError("UP-704", module=module, said=said)

    def reap(self, pid: int, deadline: float) -> int | None:
        """Wait for a child's end: its exit code, or None when it had to be killed at `deadline`."""
        handle = os.pidfd_open(pid)
        try:
            ended = bool(self.wait({handle: select.POLLIN}, deadline, stoppable=False))
            if not ended:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
        finally:
            os.close(handle)
        code = os.waitstatus_to_exitcode(status)
        return (code if code >= 0 else 128 - code) if ended else None

    # Time, signals and rights.

    def is_root(self) -> bool:
        """Whether this process has root's rights."""
        return os.geteuid() == 0

    def now(self) -> float:
        """Seconds on a clock that only goes forward; deadlines are given in it."""
        return time.monotonic()

    def guard_signals(self) -> None:
        """From here on `wait` alone notices a stop signal, and none interrupts a kernel write.

        usbip-host waits interruptibly while it is unbound and frees its data on a signal, in use
        or not (drivers/usb/usbip/usbip_event.c, usbip_stop_eh). Who may start an exporter by sudo
        can give it a timer or a terminal that send others: setitimer(2) outlives execve(2).
        """
        ours, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._wakeup = ours
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        # Ignored, it would take our children's exit codes.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            signal.signal(number, self._stop)

    def _stop(self, number: int, _frame: object) -> None:
        self.stopped_by = number

    def wait(
        self, events: Mapping[int, int], deadline: float | None, stoppable: bool = True
    ) -> dict[int, int]:
        """Sleep until one of the FDs has an event, and give those that have: FD to poll(2) bits.

        Nothing is given once `deadline` has passed, whatever the FDs have. StoppedError when a
        stop signal comes and `stoppable`; else the signal stays pending for the next wait.
        """
        left = None if deadline is None else deadline - self.now()
        if left is not None and left <= 0:
            return {}
        poll = select.poll()
        for fd, mask in events.items():
            poll.register(fd, mask)
        stoppable = stoppable and self._wakeup >= 0
        if stoppable:
            poll.register(self._wakeup, select.POLLIN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        try:
            ready = dict(poll.poll(None if left is None else left * 1000))
        finally:
            if stoppable:
                signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        if stoppable and self._wakeup in ready:
            raise StoppedError("UP-801")
        return ready

    def say(self, text: str) -> None:
        """Tell the user one line; that nobody listens any more is no failure."""
        try:
            os.write(self.errors, (text + "\n").encode("ascii", "replace"))
        except OSError:
            pass
