# SPDX-License-Identifier: GPL-2.0-or-later
"""Names every step of a program by which it looks at or changes something outside, before it.

A step is `MODULE.FUNCTION CALL OBJECT`, such as `usbip_host.take write bind`, by the innermost
public function. Steps of a loop are one; different calls of one name get ` (2)`, ` (3)`, ... in
their order. Between two steps nothing outside changes, so a fault before each is a fault at every
moment.

`/run/lab-faults/fault` has lines `PROGRAM<tab>STEP<tab>ACTION`. The first program that gets there
removes the file, notes the step in `fired`, and does it. `record` makes each program append
its steps to `trace/PROGRAM.PID`.
"""

import os
import select
import signal
import sys

FOLDER = "/run/lab-faults"
PRODUCT = "/usr/lib/qubes/usb-proxy/usb_proxy/"
WATCHED = frozenset(
    (
        # what changes something, or waits
        *("ftruncate", "ioctl", "kill", "killpg", "lockf", "pidfd_send_signal", "poll"),
        *("posix_spawn", "pwrite", "rename", "sendall", "shutdown", "symlink"),
        *("unlink", "write"),
        # what looks
        *("listdir", "lstat", "open", "readlink", "recv", "stat"),
    )
)
# Who asks is of interest, not these.
HELPERS = ("files.py", "folders.py", "host.py", "sockets.py", "start.py")
NAMES = ("path", "command", "name")  # the local variables of a helper that say what it is about


class Tracer:
    """The profile function of one program."""

    def __init__(self, program: str, fault: "dict[str, str]", record: bool) -> None:
        self.program, self.fault = program, fault
        self.steps: dict[tuple[object, ...], str] = {}
        self.count: dict[str, int] = {}
        self.trace = -1
        if record:
            os.makedirs(f"{FOLDER}/trace", exist_ok=True)
            path = f"{FOLDER}/trace/{program}.{os.getpid()}"
            self.trace = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)

    def __call__(self, frame: object, event: str, function: object) -> None:
        """Called by the interpreter; see sys.setprofile."""
        if event != "c_call" or getattr(function, "__name__", "") not in WATCHED:
            return
        if function is select.poll:  # Makes an object; its method has the same name, and waits.
            return
        call: str = function.__name__  # type: ignore[attr-defined]
        where, about, key = "", "", [call]
        while frame is not None:
            code = frame.f_code  # type: ignore[attr-defined]
            if code.co_filename.startswith("<frozen importlib"):
                return  # Looks for a module; where, depends on Python.
            if code.co_filename.startswith(PRODUCT):
                if code.co_qualname == "<module>":
                    return  # An import.
                file = code.co_filename[len(PRODUCT) :]
                key += [code.co_qualname, str(frame.f_lineno)]  # type: ignore[attr-defined]
                if not where and file in HELPERS:
                    about = about or _about(frame.f_locals)  # type: ignore[attr-defined]
                elif not where:
                    where = _public(file, code.co_qualname)
            frame = frame.f_back  # type: ignore[attr-defined]
        if where:
            self.step(" ".join(filter(None, (where, call, about))), (*key, about))

    def step(self, name: str, key: "tuple[object, ...]") -> None:
        """One step, that may have been before: the fault is to happen at the first time."""
        if key in self.steps:
            return
        number = self.count[name] = self.count.get(name, 0) + 1
        name = name if number == 1 else f"{name} ({number})"
        self.steps[key] = name
        if self.trace >= 0:
            os.write(self.trace, f"{name}\n".encode())
        action = self.fault.get(name)
        if action:
            sys.setprofile(None)
            act(self.program, name, action)


def _public(file: str, function: str) -> str:
    """`MODULE.FUNCTION`, or nothing if the function is private: that one's caller counts."""
    names = function.partition(".<locals>")[0].split(".")
    if any(name.startswith("_") and not name.endswith("__") for name in names):
        return ""
    return ".".join((file.rpartition("/")[2].removesuffix(".py"), *names))


def _about(names: "dict[str, object]") -> str:
    """What a helper was asked to do something with; nothing that is different in the next run."""
    for name in NAMES:
        value = names.get(name)
        if isinstance(value, (list, tuple)):
            value = value[0]
        if isinstance(value, str):
            last = value.rpartition("/")[2]
            return "" if any(c.isdigit() for c in last) else last
    return ""


def act(program: str, step: str, action: str) -> None:
    """Do what was asked for, once."""
    try:
        os.unlink(f"{FOLDER}/fault")
    except FileNotFoundError:
        return  # Another process was first.
    if action == "HOLD":
        signals = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    with open(f"{FOLDER}/fired.new", "w", encoding="ascii") as file:
        file.write(f"{os.getpid()} {program}: {step}\n")
    os.rename(f"{FOLDER}/fired.new", f"{FOLDER}/fired")
    agent = int(os.environ.get("QREXEC_AGENT_PID", "0"))
    if action == "HOLD":  # Other than STOP, it lasts when usb-detach sends SIGCONT.
        signal.sigwait((signal.SIGUSR2,))
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)
    elif action == "STOP":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action == "KILL with its shell":
        os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "KILL its agent" and agent > 1:
        os.kill(agent, signal.SIGKILL)
    elif action in ("KILL", "TERM"):
        os.kill(os.getpid(), getattr(signal, f"SIG{action}"))
    else:
        raise ValueError(action)


def install(program: str) -> None:
    """Trace this process if there is a reason to."""
    fault = {}
    try:
        with open(f"{FOLDER}/fault", encoding="ascii") as file:
            for line in file:
                who, step, action = line.rstrip("\n").split("\t")
                if who == program:
                    fault[step] = action
    except FileNotFoundError:
        pass
    record = os.path.exists(f"{FOLDER}/record")
    if fault or record:
        sys.setprofile(Tracer(program, fault, record))
