# SPDX-License-Identifier: GPL-2.0-or-later
"""Each program dies, or is refused, at each of its calls of the system; then nothing is left.

The calls are counted in a first run, so none has to be listed here.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import posix
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from usb_proxy import start
from usb_proxy.errors import ExitCode

from .conftest import be_agent
from .fake_kernel import FakeKernel
from .processes import PATIENCE, Child, run, wait_for

Act = Callable[[str], None]
DOOR = {
    posix: (
        *("chmod", "fchmod", "ftruncate", "getpriority", "kill", "killpg", "listdir", "lstat"),
        *("mkdir", "open", "pidfd_open", "pipe", "posix_spawn", "pwrite", "read", "readlink"),
        *("rename", "setpriority", "stat", "symlink", "unlink", "write"),
    ),
    fcntl: ("ioctl", "lockf"),
}
"""What the product calls of these modules; what the model of the machine calls is `os`'s own."""

INNER = {
    *("access", "close", "dup", "fstat", "get_terminal_size", "geteuid", "getpid", "getppid"),
    *("major", "minor", "pipe2", "statvfs", "uname"),
    *("set_blocking", "set_inheritable", "waitpid", "waitstatus_to_exitcode"),
}
"""What only tells, or is about the process itself."""

WAITS = "wait"
UNREFUSED = {WAITS, "lstat", "stat"}
"""Whether something is there is never refused to root: sysfs and tmpfs have no other answer."""

LINE = b"131077 480\n"
SWITCH = "interface_authorized_default"
ANNOUNCED = "46f4:0001 080650"
RECORD = "/run/qubes/usb-import-sys-usb-2-1.state"
REMOVES_RECORD = "unlink usb-import-sys-usb-2-1.state"
"""Its failure is a warning: the record is a hint, and the next one replaces it."""

LOOKS = {"listdir", "lstat", "pidfd_open", "pipe", "read", "readlink", "stat"}
"""They change nothing outside: who dies there has died at the next call that does."""

ERRORS = {
    "open": (errno.EMFILE, errno.ENODEV),
    "pidfd_open": (errno.EMFILE,),
    "pipe": (errno.EMFILE,),
    "posix_spawn": (errno.ENOMEM,),
}
"""What the kernel may answer, the first time; EIO where nothing is said."""


class Calls:
    """Counts a program's calls of the system, and does something at one of them."""

    def __init__(self, log: Path, at: int, act: Act) -> None:
        self.log, self.at, self.act = log.open("w", buffering=1), at, act
        self.count = 0

    def install(self, kernel: FakeKernel) -> None:
        """In this process, which is of no other use from then on."""
        for module, names in DOOR.items():
            for name in names:
                setattr(module, name, self.watched(name, getattr(module, name)))
        for name in ("write", WAITS):
            setattr(kernel, name, self.watched(name, getattr(kernel, name)))

    def watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watch(*arguments: Any, **more: Any) -> Any:
            frame = sys._getframe(1)
            asks = str(frame.f_globals["__name__"])
            if asks.startswith("usb_proxy"):
                about = arguments[0] if arguments and isinstance(arguments[0], str) else ""
                said = f"{name} {about.rpartition('/')[2]}"
                self.log.write(f"{said}\n")
                self.count += 1
                if self.count == self.at:
                    self.act(said)
            return call(*arguments, **more)

        return watch


def die(_call: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(number: int) -> Act:
    def act(call: str) -> None:
        # Events may come in another order than in the first run.
        if call != REMOVES_RECORD and call.partition(" ")[0] not in UNREFUSED:
            raise OSError(number, os.strerror(number))

    return act


class Scene:
    """A machine of its own, and the far side of a call of a service in it."""

    def __init__(self, tree: Path) -> None:
        tree.mkdir()
        self.kernel = FakeKernel(tree)
        self.kernel.haste = 2
        self.kernel.add_qubesdb()
        self.kernel.add_vhci(controllers=1, half=2)
        for hub in {slot.folder.parent for slot in self.kernel.slots}:
            (hub / SWITCH).write_text("1\n")
            (self.kernel.usb / "devices" / hub.name).symlink_to(hub)
        setattr(self.kernel, f"_write_{SWITCH}", lambda file, text: file.write_text(f"{text}\n"))
        self.kernel.plug("1-1.4", devnum="5")
        be_agent(self.kernel)
        self.call()

    def call(self) -> None:
        """The far side calls."""
        self.near, self.far = socket.socketpair()
        self.kernel.link = self.near.fileno()
        self.far.settimeout(PATIENCE)

    def program(self, at: int, act: Act, *arguments: str) -> Child:
        """A program that does this at its call number `at`."""
        self.file = self.kernel.tree / f"log-{arguments[0]}"

        main = start.load(arguments[0])

        def body() -> int:
            os.setpgid(0, 0)
            self.far.close()
            self.kernel.guard_signals()
            Calls(self.file, at, act).install(self.kernel)
            return start.run(main, arguments, self.kernel)

        child = Child(body)
        self.near.close()
        return child

    def await_children(self, program: Child) -> None:
        """What a dead program has started may still be at work."""

        def is_over() -> bool:
            try:
                os.killpg(program.pid, 0)
            except ProcessLookupError:
                return True
            return False

        wait_for(is_over, "the end of what the program started")

    def log(self) -> list[str]:
        """The calls of the last program."""
        return self.file.read_text().splitlines()

    def close(self) -> None:
        for end in (self.near, self.far):
            end.close()
        self.kernel.close()


@contextlib.contextmanager
def scene(tree: Path) -> Iterator[Scene]:
    it = Scene(tree)
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        yield it
    finally:
        it.close()
        signal.signal(signal.SIGUSR1, before)


def export(it: Scene, at: int, act: Act, by: int = 0) -> int:
    """Lend a device until the far side lets go of it, or it ends by a signal: the exit code."""
    with it.program(at, act, "usb-export", "1-1.4") as child:
        got = it.far.recv(100)
        if got == LINE:
            published = it.kernel.published
            wait_for(lambda: len(published("1-1_4")) == 3 or child.ended(), "the publication")
        if by and not child.ended():
            os.kill(child.pid, by)
            child.code()
        it.far.close()
        code = child.code()
    it.await_children(child)
    return code


def export_ended_here(it: Scene, at: int, act: Act) -> int:
    return export(it, at, act, signal.SIGTERM)


def attach(it: Scene, at: int, act: Act, *announced: str, by: int = 0) -> int:
    """Plug a device into a port, until the far side ends that, or a signal: the exit code."""
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    it.far.sendall(LINE)
    with it.program(at, act, "usb-import", RECORD, str(writer), *announced) as child:
        os.close(writer)
        notice = it.kernel.tree / "run/qubes-usb-proxy/import-sys-usb-2-1.notice"
        wait_for(lambda: notice.is_symlink() or child.ended(), "the port")
        if by:
            os.kill(child.pid, by)
        it.far.close()
        code = child.code()
    it.await_children(child)
    it.kernel.reload_ports()
    report = os.read(reader, 5000)
    os.close(reader)
    if code >= 0:
        # Who asked is told the same; but not that it cannot be told.
        assert not report or report[0] == code, (report, code)
        it.kernel.say(report[1:].decode())
    return code


def attach_judged(it: Scene, at: int, act: Act) -> int:
    return attach(it, at, act, ANNOUNCED)


def repair(it: Scene, at: int, act: Act) -> int:
    """Clean up after an exporter and an importer that judges, both killed: the exit code."""
    export(it, 0, die, by=signal.SIGKILL)
    it.call()
    attach(it, 0, die, ANNOUNCED, by=signal.SIGKILL)
    with it.program(at, act, "usb-repair") as child:
        code = child.code()
    it.await_children(child)
    it.kernel.reload_ports()
    return code


def beside_an_exporter(it: Scene, at: int, act: Act, program: str, says: bytes = b"") -> int:
    """End what is lent: the exit code."""
    with it.program(0, die, "usb-export", "1-1.4") as exporter, it.far as far:
        assert far.recv(100) == LINE
        wait_for(lambda: len(it.kernel.published("1-1_4")) == 3, "the publication")
        it.call()
        it.far.sendall(says)
        with it.program(at, act, program) as child:
            code = child.code()
        far.close()
        exporter.code()
    for each in (child, exporter):
        it.await_children(each)
    return code


def detach(it: Scene, at: int, act: Act) -> int:
    return beside_an_exporter(it, at, act, "usb-detach", b"1-1.4\n")


def detach_all(it: Scene, at: int, act: Act) -> int:
    return beside_an_exporter(it, at, act, "usb-detach-all")


def export_and_attach(it: Scene, at: int, act: Act) -> int:
    """The next command of either side: 0 if both did as ever."""
    code = export(it, at, act)
    it.call()
    return code or attach(it, at, act) - ExitCode.PEER


Journey = Callable[[Scene, int, Act], int]
JOURNEYS: dict[str, Journey] = {
    "export": export,
    "export, ended here": export_ended_here,
    "import": attach,
    "import, judged": attach_judged,
    "repair": repair,
    "detach": detach,
    "detach all": detach_all,
}


def left(it: Scene, slots: bool = True) -> dict[str, object]:
    """What is there that should not be.

    Of `slots`, one of usbip-host may be there until its name is used again (stub_main.c,
    del_match_busid): only what was bound can be freed.
    """
    kernel = it.kernel
    published = kernel.published("1-1_4")
    published.pop("x-ended", None)
    found: dict[str, object] = {
        "published": published,
        "locks": [name for name in kernel.locks() if not name.startswith("left-")],
        "match_busid": kernel.table() if slots else {},
        "ports": kernel.used(),
        "records": kernel.listing("/run/qubes"),
        "closed": [
            file for file in kernel.usb.glob(f"devices/*/{SWITCH}") if "0" in file.read_text()
        ],
    }
    if kernel.driver("1-1.4") != "usb":
        found["driver"] = kernel.driver("1-1.4")
    return {name: what for name, what in found.items() if what}


def check(it: Scene, code: int, journey: Journey, expected: int) -> list[str]:
    """What is wrong after a program has ended like this.

    A repair has to make it right, and the next to succeed; after a repair the next is enough.
    """
    kernel, wrong = it.kernel, []
    said = kernel.said()
    if "Traceback" in said or "UP-101" in said:
        wrong.append(f"a defect: {said!r}")
    if code > 0 and not re.search(r"\[UP-\d{3}\]$", said.rstrip("\n")):
        wrong.append(f"no sentence with code {code}: {said!r}")
    # A repair that may open no more files leaves the slot to the next of that name.
    found = left(it, slots=code == ExitCode.OK and journey is not repair)
    if found and (code == ExitCode.OK or "locks" not in found):
        wrong.append(f"code {code}, and left, with no note of it: {found}")
    if journey is repair:
        journey = export_and_attach
    else:
        code, found = run(kernel, "usb-repair"), left(it, slots=False)
        if code or found:
            wrong.append(f"repair: {code}, left: {found}")
    it.call()
    code, found = journey(it, 0, die), left(it)
    if code != expected or found:
        wrong.append(f"the next: {code}, left: {found}")
    return wrong


@pytest.fixture(params=JOURNEYS)
def journey(request: pytest.FixtureRequest) -> Journey:
    """One after the other."""
    return JOURNEYS[request.param]


@pytest.fixture
def first(tmp_path: Path, journey: Journey) -> tuple[int, list[tuple[int, str]]]:
    """The exit code of a journey in which nothing happens, and its calls with their numbers.

    Without those that a longer journey has before it, too.
    """
    with scene(tmp_path / "first") as it:
        code = journey(it, 0, die)
        assert left(it) == {}
        calls = list(enumerate(it.log(), 1))
    if journey is not export_ended_here:
        return code, calls
    with scene(tmp_path / "other") as it:
        export(it, 0, die)
        known = list(enumerate(it.log(), 1))
    same = next(at for at, pair in enumerate(zip(calls, known, strict=False)) if len({*pair}) > 1)
    assert same > 50
    return code, calls[same:]


def test_whoever_dies_is_repaired(
    tmp_path: Path, journey: Journey, first: tuple[int, list[tuple[int, str]]]
) -> None:
    expected, calls = first
    assert len(calls) > 10
    wrong = {}
    for at, call in calls:
        if call.partition(" ")[0] in LOOKS:
            continue
        with scene(tmp_path / str(at)) as it:
            code = journey(it, at, die)
            assert code == -signal.SIGKILL or len(it.log()) < at
            if said := check(it, code, journey, expected):
                wrong[f"{at} {call}"] = said
    assert wrong == {}


def test_whoever_is_refused_says_so(
    tmp_path: Path, journey: Journey, first: tuple[int, list[tuple[int, str]]]
) -> None:
    expected, calls = first
    wrong = {}
    for at, call in calls:
        name = call.partition(" ")[0]
        if name in UNREFUSED or call == REMOVES_RECORD:
            continue
        for number in ERRORS.get(name, (errno.EIO,)):
            if number == errno.ENODEV and journey is repair:
                continue  # The kernel says so of what has gone, and then nothing of it is left.
            with scene(tmp_path / f"{at}-{number}") as it:
                code = journey(it, at, refuse(number))
                if said := check(it, code, journey, expected):
                    wrong[f"{at} {call}: {os.strerror(number)}"] = said
    assert wrong == {}


def test_no_call_is_left_out() -> None:
    """A new one belongs to `DOOR`, unless it changes nothing outside."""
    called = set()
    for source in Path(start.__file__).parent.rglob("*.py"):
        text = source.read_text()
        if "import posix as os\n" in text:
            called |= set(re.findall(r"\bos\.([a-z_0-9]+)\(", text))
    assert called - INNER == set(DOOR[posix])
