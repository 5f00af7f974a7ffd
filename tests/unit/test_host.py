# SPDX-License-Identifier: GPL-2.0-or-later
"""Files, commands, waits and messages of the machine."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from usb_proxy.errors import StoppedError, SystemLackError
from usb_proxy.host import STOP_SIGNALS, Host

from .processes import Child, wait_for

if TYPE_CHECKING:
    from .fake_kernel import FakeKernel


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("exit 0", 0, b""),
        ("echo no >&2; exit 3", 3, b"no\n"),
        ("kill -9 $$", 137, b""),
        ("echo out; cat", 0, b""),
        ('echo "$PATH $HOME" >&2', 0, b"/usr/sbin:/usr/bin:/sbin:/bin \n"),
    ],
)
def test_a_command_runs_with_no_input_and_a_small_environment(
    kernel: FakeKernel, body: str, code: int, said: bytes
) -> None:
    kernel.command("something", body)
    assert kernel.run(["something"]) == (code, said)


def test_arguments_reach_a_command_unchanged(kernel: FakeKernel) -> None:
    kernel.command("something")
    arguments = ["", "a b", "$(x)", "'\"", "-n", "*"]
    kernel.run(["something", *arguments])
    assert kernel.calls("something") == [arguments]


def test_a_command_that_is_missing_or_hangs_is_told_of(kernel: FakeKernel) -> None:
    with pytest.raises(SystemLackError, match="something is not installed"):
        kernel.run(["something"])
    path = kernel.command("something", "exec sleep 1000")
    kernel.haste = 50
    with pytest.raises(SystemLackError, match="something has not ended after 10 s"):
        kernel.run(["something"])
    path.write_text("no program")
    with pytest.raises(SystemLackError, match="something did not start: Exec format error"):
        kernel.run(["something"])


def test_a_kernel_file_is_never_created_nor_a_link_read(kernel: FakeKernel) -> None:
    with pytest.raises(FileNotFoundError):
        Host(str(kernel.tree)).write("/run/new", "x")
    (kernel.tree / "run/link").symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic links"):
        kernel.read("/run/link")
    assert kernel.listing("/nowhere") == []


def test_a_kernel_file_that_is_read_only_has_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("posix.open", refuse)
    with pytest.raises(SystemLackError, match=r"/sys is read-only; run: .*UP-764"):
        Host().write("/sys/x", "1")
    assert Host().is_read_only("/proc") is False


def test_a_busy_processor_lets_no_deadline_of_the_fake_machine_pass(kernel: FakeKernel) -> None:
    """Its clock is fast in a wait alone: what is there already is found."""
    kernel.haste = 50
    ours, theirs = os.pipe()
    os.write(theirs, b"x")
    deadline = kernel.now() + 10
    time.sleep(0.3)
    assert kernel.wait({ours: select.POLLIN}, deadline) == {ours: select.POLLIN}
    assert kernel.wait({theirs: 0}, deadline) == {} and kernel.now() >= deadline
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_stop_signal_ends_a_wait_but_not_one_for_the_kernel(
    kernel: FakeKernel, number: int
) -> None:
    """The signal stays pending, and ends the next wait that may be ended."""
    mark = kernel.tree / "waiting"

    def body() -> int:
        kernel.guard_signals()
        mark.touch()
        ours, theirs = os.pipe()
        wait_for(lambda: number in signal.sigpending(), "the signal")
        kernel.haste = 100
        if kernel.wait({ours: select.POLLIN}, kernel.now() + 10, stoppable=False):
            return 1
        os.write(theirs, b"x")
        try:
            kernel.wait({ours: select.POLLIN}, kernel.now() + 1000)
        except StoppedError:
            return 0
        return 2

    with Child(body) as child:
        wait_for(mark.exists, "the child")
        os.kill(child.pid, number)
        assert child.code() == 0


def test_a_line_that_nobody_reads_is_no_failure(kernel: FakeKernel) -> None:
    ours, theirs = os.pipe()
    host = Host(str(kernel.tree), {}, -1, theirs)
    host.say("a \N{SNOWMAN}")
    assert os.read(ours, 100) == b"a ?\n"
    os.close(ours)
    host.say("b")
    os.close(theirs)


def test_no_name_in_the_environment_is_a_defect() -> None:
    """Who calls by sudo chooses what follows QREXEC_."""
    code = "from usb_proxy.host import Host; assert Host().environment['QREXEC_X'] == '\ufffd'"
    environment = {
        b"QREXEC_\xff": b"1",
        b"QREXEC_X": b"\xff",
        b"PYTHONPATH": b":".join(os.fsencode(path) for path in sys.path if path),
    }
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_a_command_that_even_sigkill_does_not_end_holds_nobody(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As modprobe is, while a module's start hangs in the kernel."""
    kernel.command("something", "exec sleep 20")
    kernel.haste = 20
    monkeypatch.setattr("usb_proxy.host.signal.pidfd_send_signal", lambda *_: None)
    began = time.monotonic()
    with pytest.raises(SystemLackError, match="has not ended"):
        kernel.run(["something"])
    assert time.monotonic() - began < 10


def test_a_child_that_cannot_be_waited_for_is_killed_and_reaped(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where an earlier child's SIGCHLD is pending still."""
    pid = kernel.tree / "pid"
    kernel.command("quick")
    kernel.command("slow", f"echo $$ > {pid}; exec sleep 60")

    def no_more(_pid: int) -> int:
        wait_for(lambda: pid.exists() and pid.read_text(), "the child")
        raise OSError(errno.EMFILE, "Too many open files")

    def body() -> int:
        kernel.guard_signals()
        assert kernel.run(["quick"])[0] == 0
        monkeypatch.setattr("usb_proxy.host.os.pidfd_open", no_more)
        with pytest.raises(OSError, match="Too many"):
            kernel.run(["slow"])
        with pytest.raises(ChildProcessError):
            os.waitpid(int(pid.read_text()), os.WNOHANG)
        return 0

    with Child(body) as child:
        assert child.code() == 0
