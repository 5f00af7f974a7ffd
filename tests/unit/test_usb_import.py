# SPDX-License-Identifier: GPL-2.0-or-later
"""The importer; how it goes on once the kernel announces the device is tested in the lab."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, cast

import pytest

from usb_proxy.commands import usb_import
from usb_proxy.errors import ExitCode, PeerError, SystemLackError
from usb_proxy.kernel import UsbSpeed
from usb_proxy.qrexec import Link
from usb_proxy.runstate import notice

from .processes import Running, hold, leave, program, run, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from usb_proxy.uevents import Uevents

    from .fake_kernel import FakeKernel

RECORD = "/run/qubes/usb-import-sys-usb-2-1.state"
LINE = b"131074 480\n"


class Asker:
    """Whoever asks for the device, and keeps the reading end of the report's pipe."""

    reader = -1

    def start(self, kernel: FakeKernel) -> Running:
        """Run the importer, which closes its end of the pipe."""
        self.reader, writer = os.pipe()
        return Running(kernel, "usb-import", RECORD, str(writer))

    def report(self) -> str:
        """All that is reported."""
        report = b""
        while part := os.read(self.reader, 1000):
            report += part
        return report.decode()

    def run(self, kernel: FakeKernel) -> tuple[int, str]:
        """Run the importer to its end: its exit code, which it also reports, and why."""
        code, report = self.start(kernel).code(), self.report()
        assert ord(report[0]) == code
        return code, report[1:]

    def close(self) -> None:
        if self.reader >= 0:
            os.close(self.reader)
            self.reader = -1


@pytest.fixture
def asker() -> Iterator[Asker]:
    asker = Asker()
    yield asker
    asker.close()


@pytest.fixture(autouse=True)
def called(kernel: FakeKernel, peer: socket.socket, agent: list[int]) -> Iterator[None]:
    """A call of the service in a qube that has ports; afterwards nothing is left of it."""
    kernel.add_vhci(controllers=1, half=2)
    yield
    assert (kernel.used(), kernel.locks(), kernel.listing("/run/qubes")) == ([], [], [])


@pytest.mark.parametrize(
    ("sent", "closed", "said"),
    [
        (b"", True, "closed the connection without an answer"),
        (b"1310", True, "closed the connection within its answer"),
        (b"", False, "sent no answer in time"),
        (b"131074 48", False, "sent only part of an answer in time"),
        (b"\n", False, "is not 'DEVID SPEED'"),
        (b"-1 480\n", False, "no decimal device number"),
        (b"4294967296 480\n", False, "an impossible device number"),
        (b"131074 481\n", False, "an unknown speed"),
        (b"131074 \xff\xfe\033\n", False, "is not 'DEVID SPEED'"),
        (b"$(reboot) ../..\n", False, "no decimal device number"),
        (b"9" * 5000, False, "too long"),
    ],
)
def test_a_bad_line_is_reported_and_leaves_nothing(
    kernel: FakeKernel, peer: socket.socket, asker: Asker, *, sent: bytes, closed: bool, said: str
) -> None:
    kernel.haste = 30 if "in time" in said else 1
    peer.sendall(sent)
    if closed:
        peer.close()
    code, report = asker.run(kernel)
    assert (code, kernel.written, kernel.said()) == (ExitCode.PEER, [], "")
    assert said in report
    assert report.isprintable() and report.isascii()


def test_without_a_report_the_sentence_goes_to_stderr(
    kernel: FakeKernel, peer: socket.socket
) -> None:
    peer.close()
    assert run(kernel, "usb-import", RECORD) == ExitCode.PEER
    assert kernel.said() == (
        "usb-import: the backend closed the connection without an answer; "
        "see that qubes-usb-proxy is installed there [UP-614]\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        *((), ("a", "b", "c"), ("/run/qubes/x.state",), ("/run/qubes/usb-import-x",), ("",)),
        *(("/etc/usb-import-a-2-1.state",), ("/run/qubes/../usb-import-a-2-1.state",)),
        *((RECORD, "2"), (RECORD, "-1"), (RECORD, "x"), (RECORD, ""), (RECORD, "1024")),
        *((RECORD, "\N{ARABIC-INDIC DIGIT NINE}" * 2000),),
        *((RECORD, "\N{SUPERSCRIPT TWO}"), (RECORD, "1023")),
    ],
)
def test_bad_arguments_are_refused(kernel: FakeKernel, arguments: tuple[str, ...]) -> None:
    assert run(kernel, "usb-import", *arguments) == ExitCode.REQUEST
    assert kernel.said().count("\n") == 1


@pytest.mark.parametrize("lack", ["root", "agent", "stream", "driver", "lock"])
def test_what_is_missing_is_reported(
    kernel: FakeKernel, peer: socket.socket, asker: Asker, lack: str
) -> None:
    peer.sendall(LINE)
    expected = {
        "root": (ExitCode.SYSTEM, "this needs root"),
        "agent": (ExitCode.REQUEST, "QREXEC_AGENT_PID is no process"),
        "stream": (ExitCode.REQUEST, "stdin is no stream socket"),
        "driver": (ExitCode.SYSTEM, "vhci-hcd is not loaded"),
        "lock": (ExitCode.IN_USE, "this device is attached to this qube already"),
    }[lack]
    if lack == "root":
        kernel.privileged = False
    elif lack == "agent":
        kernel.environment = {}
    elif lack == "stream":
        kernel.link = kernel.errors
    elif lack == "driver":
        kernel.unload("vhci-hcd")
    if lack == "lock":
        kernel.haste = 100
        with hold(kernel, "import-sys-usb-2-1", release=True) as holder:
            code, report = asker.run(kernel)
            os.kill(holder.pid, 15)
            holder.code()
    else:
        code, report = asker.run(kernel)
    assert (code, kernel.used()) == (expected[0], [])
    assert expected[1] in report


def test_without_a_free_port_a_sentence_is_reported(
    kernel: FakeKernel, peer: socket.socket, asker: Asker
) -> None:
    for number in (0, 1):
        kernel.occupy(number)
    peer.sendall(LINE)
    code, report = asker.run(kernel)
    assert code == ExitCode.IN_USE
    assert report.startswith("all 2 high-speed USB ports of this qube are in use")
    assert kernel.used() == [0, 1]
    for number in (0, 1):
        kernel.write("/sys/devices/platform/vhci_hcd.0/detach", str(number))


@pytest.mark.parametrize("ends", ["peer closes", "nothing comes", "asker goes", "record fails"])
def test_an_attachment_that_comes_to_nothing_is_undone(
    kernel: FakeKernel, peer: socket.socket, asker: Asker, agent: list[int], ends: str
) -> None:
    if ends == "nothing comes":
        kernel.haste = 20
    if ends == "record fails":
        (kernel.tree / "run/qubes").rename(kernel.tree / "run/gone")
    importer = asker.start(kernel)
    peer.sendall(b"131074 10000 reserved\nbytes for the kernel")
    if ends in ("peer closes", "asker goes"):
        wait_for(lambda: kernel.exists(RECORD), "the record")
        assert kernel.read(RECORD) == "2\n"
        assert notice(kernel, "import-sys-usb-2-1")[0] == "2"
        assert (kernel.used(), agent) == ([2], [10])
        assert (kernel.slots[2].devid, kernel.slots[2].speed) == (131074, UsbSpeed.SUPER_PLUS)
        assert kernel.locks() == ["import-sys-usb-2-1.lock", "import-sys-usb-2-1.notice"]
    if ends == "asker goes":
        asker.close()
    if ends == "peer closes":
        peer.close()
    code = importer.code()
    if ends == "asker goes":
        assert code == ExitCode.PEER
        assert "the program that asked for the device has gone; attach it" in kernel.said()
        return
    assert (code, asker.report()[1:21]) == {
        "peer closes": (ExitCode.PEER, "the backend ended th"),
        "nothing comes": (ExitCode.PEER, "the device does not "),
        "record fails": (ExitCode.SYSTEM, f"cannot write {kernel.root}"[:20]),
    }[ends]


class Neighbours:
    """Events of other devices of the hub that come and go without end."""

    def __init__(self) -> None:
        self._pipe = os.pipe()
        os.write(self._pipe[1], b"always")

    def fileno(self) -> int:
        return self._pipe[0]

    def pending(self) -> list[str]:
        return ["add@/devices/platform/vhci_hcd.0/usb3/3-9"]


def test_other_devices_do_not_hold_it_up_for_ever(
    kernel: FakeKernel, peer: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usb_import, "ENUMERATE_SECONDS", 0.6)
    monkeypatch.setattr(usb_import, "TURN_SECONDS", 1.0)
    start = kernel.now()
    with pytest.raises(PeerError, match=r"does not answer \(1 s\)"):
        usb_import._await_device(
            kernel,
            cast("Uevents", Neighbours()),
            "/devices/platform/vhci_hcd.0/usb3/3-1",
            Link(kernel),
            usb_import.Report(None),
        )
    assert kernel.now() - start >= usb_import.TURN_SECONDS


def test_what_fails_in_cleaning_up_is_told_after_what_failed(
    kernel: FakeKernel, peer: socket.socket, asker: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        try:
            raise PeerError("UP-615")
        finally:
            raise SystemLackError("UP-714", attachment="sys-usb-2-1", port=0)

    monkeypatch.setattr(usb_import, "_import", fail)
    code, report = asker.run(kernel)
    assert code == ExitCode.PEER
    assert "[UP-615]; then: " in report
    assert report.endswith("[UP-714]")


def test_a_stop_signal_ends_the_wait_for_the_line(kernel: FakeKernel) -> None:
    with program(kernel, "usb-import", RECORD) as importer:
        wait_for(kernel.locks, "the lock")
        os.kill(importer.pid, 15)
        assert importer.code() == ExitCode.STOPPED
    assert "stopped by a signal before it was done; try again [UP-801]\n" in kernel.said()


def test_what_a_dead_importer_left_is_detached_first(
    kernel: FakeKernel, peer: socket.socket, asker: Asker
) -> None:
    kernel.occupy(1, 0x20002)
    leave(kernel, "import-sys-usb-2-1", f"1 {0x20002}")
    peer.close()
    assert asker.run(kernel)[0] == ExitCode.PEER
    assert kernel.used() == []
