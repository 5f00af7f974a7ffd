# SPDX-License-Identifier: GPL-2.0-or-later
"""Detaching on either side, all at once, and resetting."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from usb_proxy.errors import ExitCode
from usb_proxy.frontend import imports, records
from usb_proxy.idents import Attachment

from .processes import hold, leave, program, run, wait_for

if TYPE_CHECKING:
    from .fake_kernel import FakeKernel

ATTACHMENT = Attachment("sys-usb-1-1.4")
DEVID = 0x20005


@pytest.fixture(autouse=True)
def controllers(kernel: FakeKernel) -> None:
    kernel.add_vhci()


def detach(kernel: FakeKernel, request: str) -> int:
    """Ask the service: its exit code."""
    near, far = socket.socketpair()
    with near, far:
        kernel.link = near.fileno()
        far.sendall(request.encode())
        return run(kernel, "usb-detach")


# In the frontend.


@pytest.mark.parametrize("device", ["1-1.4", "0x12ab.0x00cd"])
def test_what_is_not_attached_here_cannot_be_detached(kernel: FakeKernel, device: str) -> None:
    kernel.occupy(0, DEVID)
    assert detach(kernel, f"sys-usb {device}\n") == ExitCode.NOT_ATTACHED
    assert kernel.said() == (
        f"usb-detach: {device} of sys-usb is not attached to this qube; "
        "'qvm-usb list' shows where it is [UP-501]\n"
    )
    assert (kernel.used(), kernel.locks()) == ([0], [])


def test_the_importer_is_stopped_and_waited_for(kernel: FakeKernel) -> None:
    holder = hold(kernel, f"import-{ATTACHMENT}", release=True)
    with holder, hold(kernel, "import-other-1-1.4") as other:
        assert detach(kernel, "sys-usb 1-1.4\n") == ExitCode.OK
        assert holder.code() == 0
        assert not other.ended()
    assert kernel.said() == ""


@pytest.mark.parametrize("left", ["note", "record", "both", "stale record"])
def test_what_a_dead_importer_left_is_detached(kernel: FakeKernel, left: str) -> None:
    kernel.occupy(2, DEVID)
    kernel.occupy(1, DEVID + 1)
    if left in ("note", "both"):
        leave(kernel, f"import-{ATTACHMENT}", imports.note(2, DEVID))
    if left != "note":
        records.write(kernel, ATTACHMENT, 0 if left == "stale record" else 2)
    assert detach(kernel, "sys-usb 1-1.4\n") == ExitCode.OK
    assert kernel.used() == ([1, 2] if left == "stale record" else [1])
    assert (kernel.locks(), kernel.listing("/run/qubes")) == ([], [])
    assert detach(kernel, "sys-usb 1-1.4\n") == ExitCode.NOT_ATTACHED


def test_an_importer_that_is_killed_by_it_is_cleaned_up_after(kernel: FakeKernel) -> None:
    """It does not heed the signal's meaning, and dies of it."""
    kernel.occupy(2, DEVID)
    with hold(kernel, f"import-{ATTACHMENT}", imports.note(2, DEVID)):
        assert detach(kernel, "sys-usb 1-1.4\n") == ExitCode.OK
    assert (kernel.used(), kernel.locks()) == ([], [])


# In the backend.


def test_what_is_not_attached_from_here_cannot_be_taken_back(kernel: FakeKernel) -> None:
    kernel.plug("1-1.4")
    for bus_id in ("1-1.4", "1-1.5"):
        assert detach(kernel, f"{bus_id}\n") == ExitCode.NOT_ATTACHED
        assert f"USB device {bus_id} is not attached to any qube" in kernel.said()
    assert (kernel.driver("1-1.4"), kernel.locks(), kernel.written) == ("usb", [], [])


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_device_is_taken_back(
    kernel: FakeKernel, peer: socket.socket, agent: list[int], is_killed: bool
) -> None:
    """Also from an exporter that has died."""
    kernel.plug("1-1.4")
    with program(kernel, "usb-export", "1-1.4") as exporter:
        wait_for(lambda: len(kernel.published("1-1_4")) == 3, "the publication")
        if is_killed:
            exporter.kill()
        assert detach(kernel, "1-1.4\n") == ExitCode.OK
        assert exporter.code() == (-signal.SIGKILL if is_killed else 0)
    assert kernel.driver("1-1.4") == "usb"
    told = {"x-ended": "detached"}
    assert (kernel.published("1-1_4"), kernel.locks(), kernel.table()) == (told, [], {})
    assert detach(kernel, "1-1.4\n") == ExitCode.NOT_ATTACHED


def test_a_device_that_usbip_host_just_has_is_taken_back(kernel: FakeKernel) -> None:
    kernel.plug("1-1.4", None)
    for name, text in (("match_busid", "add 1-1.4"), ("bind", "1-1.4")):
        kernel.write(f"/sys/bus/usb/drivers/usbip-host/{name}", text)
    assert detach(kernel, "1-1.4\n") == ExitCode.OK
    assert kernel.driver("1-1.4") == "usb"


# Either.


@pytest.mark.parametrize(
    ("request_line", "code", "said"),
    [
        ("", ExitCode.REQUEST, "has to be 'BACKEND DEVICE'"),
        ("\n", ExitCode.REQUEST, "has to be 'BACKEND DEVICE'"),
        ("a 2-1 x\n", ExitCode.REQUEST, "has to be 'BACKEND DEVICE'"),
        ("../../x\n", ExitCode.REQUEST, "names no USB device"),
        ("0x12ab.0x00cd\n", ExitCode.REQUEST, "names no USB device"),
        ("sys-usb 2-1/../x\n", ExitCode.REQUEST, "names no USB device"),
        ("../x 2-1\n", ExitCode.REQUEST, "is not the name of a qube"),
        ("sys-usb usb1\n", ExitCode.REQUEST, "is a root hub"),
        ("\N{SUPERSCRIPT TWO}-1\n", ExitCode.REQUEST, "not ASCII"),
        ("x" * 300, ExitCode.REQUEST, "too long"),
    ],
)
def test_a_bad_request_is_refused(
    kernel: FakeKernel, peer: socket.socket, request_line: str, code: int, said: str
) -> None:
    peer.sendall(request_line.encode())
    peer.close()
    assert run(kernel, "usb-detach") == code
    assert said in kernel.said() and kernel.said().count("\n") == 1
    assert (kernel.locks(), kernel.written) == ([], [])


@pytest.mark.parametrize("request_line", ["sys-usb 2-1\n", "2-1\n"])
def test_only_root_detaches(kernel: FakeKernel, request_line: str) -> None:
    kernel.privileged = False
    assert detach(kernel, request_line) == ExitCode.SYSTEM
    assert "this needs root" in kernel.said()


@pytest.mark.parametrize("name", [f"import-{ATTACHMENT}", "export-1-1.4"])
def test_a_process_that_does_not_end_is_told_of(kernel: FakeKernel, name: str) -> None:
    kernel.haste = 50
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with hold(kernel, name):
            request = "sys-usb 1-1.4" if name.startswith("import") else "1-1.4"
            assert detach(kernel, f"{request}\n") == ExitCode.SYSTEM
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "does not end, so the kernel keeps it; restart this qube" in kernel.said()


# Everything, before suspend.


def test_everything_is_detached(kernel: FakeKernel) -> None:
    kernel.occupy(2, DEVID)
    kernel.occupy(3, DEVID + 1)
    leave(kernel, f"import-{ATTACHMENT}", imports.note(2, DEVID))
    names = ["export-1-1.4", "export-2-1", "import-a-2-1"]
    holders = [hold(kernel, name, release=True) for name in names]
    try:
        assert run(kernel, "usb-detach-all") == ExitCode.OK
        assert [holder.code() for holder in holders] == [0] * 3
    finally:
        for holder in holders:
            holder.kill()
    assert (kernel.locks(), kernel.used(), kernel.said()) == ([], [3], "")


@pytest.mark.parametrize("name", ["usb-detach-all", "usb-repair"])
def test_with_nothing_attached_there_is_nothing_to_do(kernel: FakeKernel, name: str) -> None:
    assert run(kernel, name) == ExitCode.OK
    assert (kernel.written, kernel.said()) == ([], "")
    kernel.privileged = False
    assert run(kernel, name) == ExitCode.SYSTEM
    assert "this needs root" in kernel.said()


@pytest.mark.parametrize("argument", ["--help", "2-1"])
def test_whoever_wants_less_than_everything_detaches_nothing(
    kernel: FakeKernel, argument: str
) -> None:
    leave(kernel, f"import-{ATTACHMENT}", imports.note(2, DEVID))
    assert run(kernel, "usb-detach-all", argument) == ExitCode.REQUEST
    assert "it takes no argument" in kernel.said()
    assert (kernel.written, kernel.locks()) == ([], [f"import-{ATTACHMENT}.lock"])


def test_a_user_is_told_what_to_run(kernel: FakeKernel) -> None:
    """No service started it, so no service's configuration is of use."""
    kernel.plug("3-1")
    kernel.privileged = False
    assert run(kernel, "usb-detach-all") == ExitCode.SYSTEM
    command = "sudo /usr/lib/qubes/usb-detach-all"
    assert kernel.said() == f"usb-detach-all: this needs root; run: {command} [UP-781]\n"
    assert kernel.written == []


# Resetting.


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), ExitCode.REQUEST, "usb-reset: name one device"),
        (("2-1", "2-2"), ExitCode.REQUEST, "usb-reset: name one device"),
        (("../2-1",), ExitCode.REQUEST, "names no USB device"),
        (("2-1",), ExitCode.REQUEST, "2-1 is a hub"),
        (("10-1",), ExitCode.REQUEST, "attached here from another qube"),
        (("3-1",), ExitCode.NO_DEVICE, "no USB device 3-1 is plugged in"),
        (("0x12ab.0x00cd",), ExitCode.NO_DEVICE, "1-1.4 did not survive its reset"),
    ],
)
def test_a_reset_that_cannot_be_is_refused(
    kernel: FakeKernel, arguments: tuple[str, ...], code: int, said: str
) -> None:
    kernel.resets = None
    kernel.plug("1-1.4")
    kernel.plug("2-1", bDeviceClass="09")
    kernel.plug("10-1", below="platform/vhci_hcd.0/usb10")
    assert run(kernel, "usb-reset", *arguments) == code
    assert said in kernel.said() and kernel.said().count("\n") == 1


def test_only_root_resets(kernel: FakeKernel) -> None:
    kernel.privileged = False
    assert run(kernel, "usb-reset", "1-1.4") == ExitCode.SYSTEM
    assert os.listdir(kernel.tree / "run/qubes") == []
