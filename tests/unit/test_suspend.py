# SPDX-License-Identifier: GPL-2.0-or-later
"""Nothing begins once all was ended: not what waited, and in suspend nothing at all."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from usb_proxy import suspend
from usb_proxy.errors import ExitCode

from .fake_machine import open_files
from .processes import Running, hold, program, run, wait_for

if TYPE_CHECKING:
    from .fake_kernel import FakeKernel

RESUMED = Path(__file__).parents[2] / "programs/usb-resumed"
RECORD = "/run/qubes/usb-import-sys-usb-1-1.4.state"
BEFORE_SUSPEND = {"QREXEC_SERVICE_FULL_NAME": "qubes.SuspendPreAll"}


@pytest.fixture(autouse=True)
def called(kernel: FakeKernel, peer: socket.socket, agent: list[int]) -> None:
    """A qube that may lend and use devices."""
    kernel.plug("1-1.4", devnum="5")
    kernel.add_vhci()


PROGRAMS = {
    "export-1-1.4": ("usb-export", "1-1.4"),
    "import-sys-usb-1-1.4": ("usb-import", RECORD),
}


@pytest.mark.parametrize("lock", PROGRAMS)
def test_what_waited_ends_with_a_sentence(kernel: FakeKernel, lock: str) -> None:
    with hold(kernel, lock, release=True):
        waiter = Running(kernel, *PROGRAMS[lock])
        path = str(kernel.tree / f"run/qubes-usb-proxy/{lock}.lock")
        wait_for(lambda: path in open_files(), "the program to wait for the lock")
        assert run(kernel, "usb-detach-all") == ExitCode.OK
        assert waiter.code() == ExitCode.STOPPED
    assert "were detached during this attach; try again [UP-804]" in kernel.said()
    assert (kernel.written, kernel.locks()) == ([], [])


def test_by_hand_it_holds_nothing_up(kernel: FakeKernel, peer: socket.socket) -> None:
    assert run(kernel, "usb-detach-all") == ExitCode.OK
    exporter = Running(kernel, "usb-export", "1-1.4")
    assert peer.recv(100) == b"131077 480\n"
    peer.close()
    assert exporter.code() == ExitCode.OK


@pytest.mark.parametrize("lock", PROGRAMS)
def test_nothing_begins_before_resume(kernel: FakeKernel, lock: str) -> None:
    kernel.environment = {**kernel.environment, **BEFORE_SUSPEND}
    assert run(kernel, "usb-detach-all") == ExitCode.OK
    assert run(kernel, *PROGRAMS[lock]) == ExitCode.STOPPED
    assert "about to suspend; attach the device after resume [UP-805]" in kernel.said()
    assert (kernel.written, kernel.locks()) == ([], [])


@pytest.mark.parametrize("how", ["told", "time"])
def test_resume_ends_it(
    kernel: FakeKernel, peer: socket.socket, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    kernel.environment = {**kernel.environment, **BEFORE_SUSPEND}
    assert run(kernel, "usb-detach-all") == ExitCode.OK
    if how == "told":
        if not RESUMED.exists():
            pytest.skip("the programs are not beside the package")
        script = RESUMED.read_text().replace(suspend.MARK, str(kernel.tree) + suspend.MARK)
        subprocess.run(["/bin/sh", "-c", script], check=True)
    else:
        later = suspend.now() + suspend.SUSPEND_SECONDS
        monkeypatch.setattr(suspend, "now", lambda: later)
    exporter = Running(kernel, "usb-export", "1-1.4")
    assert peer.recv(100) == b"131077 480\n"
    peer.close()
    assert exporter.code() == ExitCode.OK


@pytest.mark.parametrize("text", ["", "x", "1", "nan nan", "1 2 3"])
def test_a_mark_that_makes_no_sense_holds_nothing_up(kernel: FakeKernel, text: str) -> None:
    os.symlink(text or "-", kernel.root + suspend.MARK)
    suspend.check(kernel, suspend.now())


def test_by_hand_it_does_not_end_a_suspend(kernel: FakeKernel) -> None:
    plain = kernel.environment
    kernel.environment = {**plain, **BEFORE_SUSPEND}
    assert run(kernel, "usb-detach-all") == ExitCode.OK
    kernel.environment = plain
    assert run(kernel, "usb-detach-all") == ExitCode.OK
    assert run(kernel, "usb-export", "1-1.4") == ExitCode.STOPPED
    assert "[UP-805]" in kernel.said()


@pytest.mark.parametrize("planted", ["a mark that stays", "a lock that does not open"])
def test_what_fails_keeps_nothing_attached(
    kernel: FakeKernel, peer: socket.socket, planted: str
) -> None:
    with program(kernel, "usb-export", "1-1.4") as exporter:
        wait_for(lambda: len(kernel.published("1-1_4")) == 3, "the publication")
        if planted == "a mark that stays":
            (kernel.tree / suspend.MARK[1:]).mkdir()
        else:
            lock = kernel.tree / "run/qubes-usb-proxy/export-1-1.1.lock"
            lock.symlink_to("/nowhere")
        assert run(kernel, "usb-detach-all") == ExitCode.SYSTEM
        assert exporter.code() == ExitCode.OK
    assert kernel.said().count("[UP-71") == 1
    assert not [
        name
        for name in kernel.listing("/run")
        if name.startswith("qubes-usb-proxy.det") and name != "qubes-usb-proxy.detached-all"
    ]
