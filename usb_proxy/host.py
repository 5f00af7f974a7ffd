# SPDX-License-Identifier: GPL-2.0-or-later
"""The door to commands, processes, signals and clocks; and by its base class to files."""

from __future__ import annotations

import posix as os
import select
import time

from usb_proxy.errors import StoppedError, SystemLackError, printable, reason
from usb_proxy.files import Files

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as signal  # noqa: PLC0414 (for `folders`, too)
    from collections.abc import Mapping, Sequence
else:
    import _signal as signal  # All of it but the enums, see kernel.py.

COMMAND_PATH = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")
COMMAND_SECONDS = 10.0
GLANCE_SECONDS = 0.001
"""For a wait that sees only what is so already."""

KILL_SECONDS = 1.0
"""How long a killed process may take to die; one that waits in the kernel does not."""

POLLIN, POLLRDHUP, SIGUSR1 = select.POLLIN, select.POLLRDHUP, signal.SIGUSR1
"""For others, who do not import these modules."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Host(Files):
    """The machine as this program sees it; tests give another root, environment and FDs.

    `link` is the FD that qrexec calls stdin. `stopped_by` is the stop signal that has come, or 0.
    """

    def __init__(
        self,
        root: str = "",
        environment: Mapping[str, str] | None = None,
        link: int = 0,
        errors: int = 2,
        output: int = 1,
    ) -> None:
        super().__init__(root)
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

    # Commands.

    def find_command(self, name: str) -> str | None:
        """The full path of a command in the system's folders, or None."""
        for folder in COMMAND_PATH:
            if self.is_executable(f"{folder}/{name}"):
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

    def run_here(self, path: str, command: Sequence[str]) -> int:
        """Run a program with this one's terminal and environment: its exit code, as `run` has it.

        SystemLackError when it does not start.
        """
        try:
            # A child starts with no signal blocked, and dies of a closed pipe, as others do.
            pid = os.posix_spawn(
                path,
                list(command),
                self.environment,
                setsigmask=[],
                setsigdef=[signal.SIGPIPE],
            )
        except OSError as error:
            raise SystemLackError("UP-702", command=command[0], reason=reason(error)) from error
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code

    def load_module(self, module: str, appears: str) -> None:
        """Make a kernel driver available, whose sysfs folder is `appears`; or SystemLackError."""
        if self.exists(appears):
            return
        code, untrusted_errors = self.run(["modprobe", module])
        if not self.exists(appears):
            said = printable(untrusted_errors) or f"exit code {code}"
            raise SystemLackError("UP-704", module=module, said=said)

    def reap(self, pid: int, deadline: float) -> int | None:
        """Wait for a child's end: its exit code, or None when it had to be killed at `deadline`.

        One that is in the kernel then, and does not even die, is left to whoever inherits it.
        """
        try:
            handle = os.pidfd_open(pid)
        except OSError:
            # No more files. What it does must not come after what we do to clean up. The first
            # SIGCHLD may be that of an earlier child: it stays pending while it is blocked.
            os.kill(pid, signal.SIGKILL)
            while not os.waitpid(pid, os.WNOHANG)[0]:
                if signal.sigtimedwait((signal.SIGCHLD,), KILL_SECONDS) is None:
                    break
            raise
        try:
            ended = bool(self.wait({handle: POLLIN}, deadline, stoppable=False))
            if not ended:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                self.wait({handle: POLLIN}, self.now() + KILL_SECONDS, stoppable=False)
            reaped, status = os.waitpid(pid, 0 if ended else os.WNOHANG)
            if not reaped:
                return None
        finally:
            os.close(handle)
        code = os.waitstatus_to_exitcode(status)
        return (code if code >= 0 else 128 - code) if ended else None

    # Processes. A handle is a pidfd: readable once the process has ended, and never another's.

    def pid(self) -> int:
        """The number of this process."""
        return os.getpid()

    def parent(self) -> int:
        """The number of the process that has started this one."""
        return os.getppid()

    def open_process(self, pid: int) -> int:
        """A handle of a process; ProcessLookupError if there is none."""
        return os.pidfd_open(pid)

    def ask_to_end(self, handle: int) -> None:
        """Tell a process to end, unless it has."""
        try:
            signal.pidfd_send_signal(handle, signal.SIGTERM)
            signal.pidfd_send_signal(handle, signal.SIGCONT)  # Stopped, it would not hear.
        except ProcessLookupError:
            pass

    def end_session(self, pid: int) -> None:
        """Tell all processes to end that are of the session of a child of ours."""
        os.killpg(pid, signal.SIGTERM)

    def signal(self, pid: int, number: int) -> None:
        """Send a signal to another process."""
        os.kill(pid, number)

    def prefer(self, pid: int, priority: int) -> None:
        """Give a process a priority, as nice(2) counts, unless somebody gave it another one."""
        if os.getpriority(os.PRIO_PROCESS, pid) == 0:
            os.setpriority(os.PRIO_PROCESS, pid, priority)

    # Time, signals and rights.

    def release(self) -> str:
        """The release of the kernel that runs."""
        return os.uname().release

    def width(self) -> int | None:
        """How many columns the terminal has that stdout is; None without one."""
        try:
            return os.get_terminal_size(self.output).columns or None
        except OSError:
            return None

    def is_root(self) -> bool:
        """Whether this process has root's rights."""
        return os.geteuid() == 0

    def now(self) -> float:
        """Seconds on a clock that only goes forward; deadlines are given in it."""
        return time.monotonic()

    def guard_signals(self) -> None:
        """From here on `wait` alone notices a stop signal, and none interrupts a kernel write.

        usbip-host waits interruptibly while it is unbound and frees its data on a signal, in use
        or not (drivers/usb/usbip/usbip_event.c, usbip_stop_eh).
        """
        ours, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._wakeup = ours
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        # Ignored, it would take our children's exit codes.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            signal.signal(number, self._stop)

    def is_told_to_end(self) -> bool:
        """Whether SIGTERM has come: from whoever detaches in this qube, or when it shuts down."""
        return self.stopped_by == signal.SIGTERM

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
            poll.register(self._wakeup, POLLIN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        try:
            ready = dict(poll.poll(None if left is None else left * 1000))
        finally:
            if stoppable:
                signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        if stoppable and self._wakeup in ready:
            raise StoppedError("UP-801")
        return ready

    def has_event(self, fd: int, mask: int) -> bool:
        """Whether an FD has an event of poll(2) by now."""
        poll = select.poll()
        poll.register(fd, mask)
        return bool(poll.poll(0))

    def warn(self, name: str, untrusted_sentence: bytes) -> None:
        """Tell the user, who got what was asked for, what should be looked at; or nothing."""
        if sentence := printable(untrusted_sentence):
            self.say(f"{name}: {sentence}")

    def say(self, text: str) -> None:
        """Tell the user one line; that nobody listens any more is no failure."""
        try:
            os.write(self.errors, (text + "\n").encode("ascii", "replace"))
        except OSError:
            pass
