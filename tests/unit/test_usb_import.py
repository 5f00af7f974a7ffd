# SPDX-License-Identifier: GPL-2.0-or-later
"""The importer; how it goes on once the kernel announces the device is tested in the lab."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from usb_proxy import handshake
from usb_proxy.commands import usb_import
from usb_proxy.errors import ExitCode, PeerError, SystemLackError
from usb_proxy.frontend import imports
from usb_proxy.frontend.enumeration import Enumeration
from usb_proxy.kernel import PortState, UsbSpeed
from usb_proxy.locks import notice

from .processes import Running, hold, leave, program, run, wait_for
from .test_journal import entries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .fake_kernel import FakeKernel
    from .test_journal import Entries

__all__ = ["entries"]

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
        (b"1310", True, "closed the connection in the middle of its answer"),
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
        "usb-import: the qube with the controllers closed the connection without an answer; "
        "make sure that qubes-usb-proxy is installed there [UP-614]\n"
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
        "agent": (ExitCode.REQUEST, "QREXEC_AGENT_PID is not a process"),
        "stream": (ExitCode.REQUEST, "stdin is not a stream socket"),
        "driver": (ExitCode.SYSTEM, "vhci-hcd is not loaded"),
        "lock": (ExitCode.IN_USE, "this device is being attached to this qube by another call"),
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


@pytest.mark.parametrize("ends", ["peer closes", "nothing comes", "asker goes"])
def test_an_attachment_that_comes_to_nothing_is_undone(
    kernel: FakeKernel, peer: socket.socket, asker: Asker, agent: list[int], ends: str
) -> None:
    if ends == "nothing comes":
        kernel.haste = 20
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
    assert (code, asker.report()[-8:]) == {
        "peer closes": (ExitCode.PEER, "[UP-615]"),
        "nothing comes": (ExitCode.PEER, "[UP-616]"),
    }[ends]


@pytest.mark.parametrize("state", ["", "attached", "ending", "ends"])
def test_who_holds_the_attachment_is_waited_for_only_if_it_is_ending(
    kernel: FakeKernel, peer: socket.socket, asker: Asker, state: str
) -> None:
    kernel.haste = 5
    note = f"1 {0x20002} {state}".strip() if state else ""
    peer.close()
    start = kernel.now()
    with hold(kernel, "import-sys-usb-2-1", note, release=True) as holder:
        if state == "ends":
            leaving = threading.Timer(0.5, os.kill, (holder.pid, 15))
            kernel.tree.joinpath("run/qubes-usb-proxy/import-sys-usb-2-1.lock").write_text("ending")
            leaving.start()
        code, report = asker.run(kernel)
        took = kernel.now() - start
        if state != "ends":
            os.kill(holder.pid, 15)
        holder.code()
    expected = {"": "UP-421", "attached": "UP-403", "ending": "UP-420", "ends": "UP-614"}[state]
    assert report.endswith(f"[{expected}]")
    assert code == (ExitCode.PEER if state == "ends" else ExitCode.IN_USE)
    assert took > imports.REMOVAL_SECONDS if state == "ending" else took < 8
    leave(kernel, "import-sys-usb-2-1", "")
    kernel.tree.joinpath("run/qubes-usb-proxy/import-sys-usb-2-1.lock").unlink()


@pytest.mark.parametrize("plant", ["folder", "pipe", "link", "no folder"])
def test_what_is_planted_in_the_records_place_is_a_warning(
    kernel: FakeKernel, peer: socket.socket, asker: Asker, plant: str
) -> None:
    record = kernel.tree / RECORD[1:]
    journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    place = kernel.tree / "run/systemd/journal"
    place.mkdir(parents=True)
    with journal:
        journal.bind(str(place / "socket"))
        if plant == "folder":
            (record / "full").mkdir(parents=True)
        elif plant == "pipe":
            os.mkfifo(record)
        elif plant == "link":
            record.symlink_to("/etc/passwd")
        else:
            record.parent.rmdir()
        importer = asker.start(kernel)
        peer.sendall(LINE)
        wait_for(kernel.used, "the port")
        wait_for(lambda: "import-sys-usb-2-1.notice" in kernel.locks(), "the attachment")
        peer.close()
        assert importer.code() == ExitCode.PEER
        assert asker.report().endswith("[UP-615]")
        journal.setblocking(False)
        if plant in ("folder", "no folder"):
            assert b"[UP-717]" in journal.recv(5000)
    if plant == "folder":
        shutil.rmtree(record)


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


@pytest.mark.parametrize(
    ("failure", "said"),
    [(OSError(24, "Too many open files"), "[UP-723]"), (ValueError("x"), "[UP-101]")],
)
def test_whatever_fails_goes_over_the_pipe(
    kernel: FakeKernel,
    peer: socket.socket,
    asker: Asker,
    monkeypatch: pytest.MonkeyPatch,
    *,
    failure: Exception,
    said: str,
) -> None:
    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(handshake, "decode", fail)
    peer.sendall(LINE)
    assert asker.run(kernel)[1].endswith(said)
    assert kernel.said() == ""


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


def test_one_that_is_removed_here_is_given_back(
    kernel: FakeKernel,
    peer: socket.socket,
    asker: Asker,
    entries: Entries,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As `safely remove` does it, which leaves the connection alone: the port is of no use then."""
    kernel.haste = 20

    def removed(*_: object) -> None:
        (slot,) = (slot for slot in kernel.slots if slot.state != PortState.FREE)
        (slot.folder / "busnum").unlink()  # The folder may go later.

    monkeypatch.setattr(Enumeration, "await_usable", removed)
    peer.sendall(LINE)
    assert asker.run(kernel) == (0, "")
    assert peer.recv(100) == b""
    assert [entry.get("REASON") for entry in entries()] == [None, "removed here"]


def test_one_that_is_pulled_before_the_report_is_not_told_to_be_attached(
    kernel: FakeKernel, peer: socket.socket, asker: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When there is nothing to wait for any more."""
    monkeypatch.setattr(Enumeration, "await_usable", lambda *_: peer.close())
    peer.sendall(LINE)
    code, report = asker.run(kernel)
    assert code == ExitCode.PEER
    assert report.endswith("[UP-615]")
