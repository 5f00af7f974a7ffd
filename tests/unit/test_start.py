# SPDX-License-Identifier: GPL-2.0-or-later
"""How a program starts and how its failures are told; the launchers."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from usb_proxy import errors, start
from usb_proxy.errors import sentence

from .processes import Child

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usb_proxy.host import Host

    from .fake_kernel import FakeKernel

ROOT = Path(start.__file__).parent.parent
INSTALLED = "/usr/lib/qubes/usb-proxy"

needs_programs = pytest.mark.skipif(
    not (ROOT / "programs").is_dir(), reason="the launchers are not beside the package"
)


def fail(kernel: FakeKernel, *failures: BaseException) -> tuple[int, str]:
    """A program that fails, and again in each step of cleaning up: its exit code and stderr."""

    def main(_arguments: Sequence[str], _host: Host) -> int:
        def step(rest: Sequence[BaseException]) -> None:
            try:
                if len(rest) > 1:
                    step(rest[:-1])
            finally:
                raise rest[-1]

        step(failures)
        return 0

    return start.run(main, ["/usr/lib/qubes/usb-x", "a"], kernel), kernel.said()


@pytest.mark.parametrize("kind", errors.UsbProxyError.__subclasses__())
def test_a_failure_is_a_sentence_and_a_code(
    kernel: FakeKernel, kind: type[errors.UsbProxyError]
) -> None:
    assert fail(kernel, kind("UP-709")) == (kind.code, f"usb-x: {sentence('UP-709')}\n")


def test_what_failed_first_is_told_first_and_nothing_twice(kernel: FakeKernel) -> None:
    failures = errors.PeerError("UP-614"), OSError(5, "x"), errors.SystemLackError("UP-709")
    assert fail(kernel, *failures, errors.NoDeviceError("UP-614")) == (
        errors.ExitCode.PEER,
        f"usb-x: {sentence('UP-614')}; then: {sentence('UP-709')}\n",
    )


@pytest.mark.parametrize("failure", [ValueError("x\n\N{SNOWMAN}"), OSError(9, "x"), KeyError()])
def test_a_defect_is_one_line_and_no_traceback(kernel: FakeKernel, failure: Exception) -> None:
    code, said = fail(kernel, failure)
    assert code == errors.ExitCode.INTERNAL
    assert said.startswith(f"usb-x: internal error, please report it: {type(failure).__name__}(")
    assert said.count("\n") == 1 and "Traceback" not in said and "test_start.py:" in said


@pytest.mark.parametrize(
    "failure", [MemoryError(), OSError(errno.EMFILE, "files"), OSError(errno.ENOSPC, "space")]
)
def test_a_machine_that_has_no_more_is_no_defect(kernel: FakeKernel, failure: Exception) -> None:
    code, said = fail(kernel, failure)
    assert code == errors.ExitCode.SYSTEM
    assert said.startswith("usb-x: this qube has run out of something that every program needs (")
    assert said.count("\n") == 1 and "internal error" not in said


def test_a_defect_is_told_even_if_cleaning_up_fails(kernel: FakeKernel) -> None:
    assert "internal error" in fail(kernel, ValueError("x"), errors.SystemLackError("UP-709"))[1]


def test_a_programs_name_is_one_of_a_list() -> None:
    for name in start.PROGRAMS:
        assert callable(start.load(name))
    for name in ("", "usb_export", "../x", "start"):
        assert start.start([name]) == errors.ExitCode.REQUEST


@pytest.mark.parametrize("number", [0, 1, 2])
def test_nothing_is_opened_in_the_place_of_a_closed_stream(number: int) -> None:
    def body() -> int:
        os.close(number)
        start.start(["none of them"])
        return int(os.readlink(f"/proc/self/fd/{number}") != "/dev/null")

    with Child(body) as child:
        assert child.code() == 0


def test_no_signal_that_was_left_to_us_ends_us(kernel: FakeKernel) -> None:
    """A timer and what is ignored outlive execve(2), and sudo."""

    def body() -> int:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        kernel.guard_signals()
        kernel.command("true", "exit 3")
        for number in (signal.SIGQUIT, signal.SIGTSTP, signal.SIGUSR1, signal.SIGXCPU):
            os.kill(os.getpid(), number)
        kernel.wait({}, kernel.now() + 0.05)
        return kernel.run(["true"])[0]

    with Child(body) as child:
        assert child.code() == 3


@needs_programs
@pytest.mark.parametrize(
    "name", ["usb-attach", "usb-detach", "usb-export", "usb-import", "usb-reset"]
)
def test_the_launcher_starts_every_program(tmp_path: Path, name: str) -> None:
    """Each refuses to run without what it needs to be told, before it touches anything."""
    launcher = (ROOT / "programs/launch").read_text()
    assert launcher.startswith("#!/usr/bin/python3 -IS\n") and INSTALLED in launcher
    (tmp_path / "launch").write_text(launcher.replace(INSTALLED, str(ROOT)))
    done = subprocess.run(
        [sys.executable, "-IS", tmp_path / "launch", name],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (errors.ExitCode.REQUEST, "")
    assert done.stderr.startswith(f"{name}: ") and done.stderr.count("\n") == 1


@needs_programs
@pytest.mark.parametrize("name", ["usb-export", "usb-import"])
@pytest.mark.parametrize(
    ("end", "code", "repairs"),
    [("exit 0", 0, False), ("exit 6", 6, False), ("kill -9 $$", 137, True), ("kill $$", 143, True)],
)
def test_who_is_killed_is_cleaned_up_after(
    tmp_path: Path, name: str, end: str, code: int, repairs: bool
) -> None:
    launch = tmp_path / "launch"
    launch.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\ncase $1 in {name}) {end};; esac\n'
    )
    launch.chmod(0o755)
    script = (ROOT / "programs" / name).read_text().replace(INSTALLED, str(tmp_path))
    (tmp_path / name).write_text(script)
    done = subprocess.run(["/bin/sh", tmp_path / name, "a b", ""], capture_output=True, check=False)
    assert done.returncode == code
    calls = [f"{name} a b ", "usb-repair"]
    assert (tmp_path / "calls").read_text().splitlines() == calls[: 1 + repairs]


@needs_programs
def test_the_services_are_programs_that_exist() -> None:
    for path in [*(ROOT / "qubes-rpc").glob("qubes.*"), *(ROOT / "programs").iterdir()]:
        if path.suffix != ".config":
            assert os.access(path, os.X_OK) and path.read_text().startswith("#!")
            assert len(path.read_text().splitlines()) <= 14, "no logic outside of the package"
