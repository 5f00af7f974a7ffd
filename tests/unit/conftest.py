# SPDX-License-Identifier: GPL-2.0-or-later
"""What most tests need: a machine, and a connection to another qube."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from .fake_kernel import FakeKernel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[FakeKernel]:
    """A machine with QubesDB and no device."""
    machine = FakeKernel(tmp_path)
    machine.add_qubesdb()
    yield machine
    machine.close()


@pytest.fixture
def peer(kernel: FakeKernel) -> Iterator[socket.socket]:
    """The far end of the connection that is the machine's stdin."""
    near, far = socket.socketpair()
    kernel.link = near.fileno()
    far.settimeout(10)
    with near, far:
        yield far


@pytest.fixture
def agent(kernel: FakeKernel) -> Iterator[list[int]]:
    """Makes this process the qrexec agent of what it runs: the signals that it got."""
    be_agent(kernel)
    signals: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: signals.append(number))
    yield signals
    signal.signal(signal.SIGUSR1, before)


def be_agent(kernel: FakeKernel) -> None:
    """The machine's /proc says that this process is above the one that runs the tests.

    It gets SIGUSR1.
    """
    if os.getppid() <= 1:
        pytest.skip("the parent of the tests is no ordinary process")
    for pid, parent in ((os.getppid(), os.getpid()), (os.getpid(), 1)):
        folder = kernel.tree / "proc" / str(pid)
        folder.mkdir(parents=True)
        lines = "Name:\tx", f"Pid:\t{pid}", f"PPid:\t{parent}", "SigIgn:\t0", "SigCgt:\t200"
        (folder / "status").write_text("\n".join(lines) + "\n")
    kernel.environment = {"QREXEC_AGENT_PID": str(os.getpid()), "QREXEC_REMOTE_DOMAIN": "work"}
