# SPDX-License-Identifier: GPL-2.0-or-later
"""What the journal is told, to a socket that stands where journald's would."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from usb_proxy import journal, qrexec, repair
from usb_proxy.backend import exports
from usb_proxy.commands import usb_export
from usb_proxy.errors import ExitCode, PeerError, SystemLackError
from usb_proxy.frontend import imports
from usb_proxy.idents import BusId, DomainName
from usb_proxy.locks import Lock, notice

from .processes import Child, leave, program, run, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .fake_kernel import FakeKernel

    Entries = Callable[[], list[dict[str, str]]]


@pytest.fixture
def entries(kernel: FakeKernel) -> Iterator[Entries]:
    """Gives the entries since it was asked last, by field, without USB_PROXY_ before names."""
    folder = kernel.tree / "run/systemd/journal"
    folder.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.bind(str(folder / "socket"))
        journald.setblocking(False)

        def pending() -> list[dict[str, str]]:
            found = []
            try:
                while True:
                    lines = journald.recv(65536).decode("ascii").splitlines()
                    fields = [line.partition("=") for line in lines]
                    found.append({n.removeprefix("USB_PROXY_"): text for n, _, text in fields})
            except BlockingIOError:
                return found

        yield pending


@pytest.mark.parametrize(
    ("ends", "why"),
    [
        ("peer", "detached there"),
        ("unplugged", "unplugged"),
        ("being unplugged", "unplugged"),
        ("a request failed as it was pulled", "unplugged"),
        ("SIGTERM", "detached here"),
        ("SIGHUP", "stopped by a signal"),
    ],
)
@pytest.mark.usefixtures("agent")
def test_an_export(
    kernel: FakeKernel,
    peer: socket.socket,
    entries: Entries,
    monkeypatch: pytest.MonkeyPatch,
    *,
    ends: str,
    why: str,
) -> None:
    monkeypatch.setattr(usb_export, "EARLY_SECONDS", 0.0)
    kernel.plug("1-1.4")
    end = qrexec.Link.end

    def end_and_go(link: qrexec.Link, deadline: float) -> None:
        end(link, deadline)
        if ends.startswith("a request"):
            kernel.unplug("1-1.4")

    monkeypatch.setattr(qrexec.Link, "end", end_and_go)
    with program(kernel, "usb-export", "0x12ab.0x00cd") as exporter:
        wait_for(lambda: len(kernel.published("1-1_4")) == 3, "the publication")
        told: list[dict[str, str]] = []

        def is_told() -> bool:
            told.extend(entries())
            return bool(told)

        wait_for(is_told, "the entry")
        assert told == [
            {
                "MESSAGE": "USB device 1-1.4 (12ab:00cd) is attached to work",
                "MESSAGE_ID": journal.ATTACHED,
                "PRIORITY": "6",
                "SYSLOG_IDENTIFIER": "qubes-usb-proxy",
                "ROLE": "exporter",
                "DEVICE": "1-1.4",
                "PRODUCT": "12ab:00cd",
                "PEER": "work",
            }
        ]
        assert notice(kernel, "export-1-1.4")[0] == "work"
        if ends in ("peer", "a request failed as it was pulled"):
            peer.shutdown(socket.SHUT_RDWR)
        elif ends == "unplugged":
            kernel.unplug("1-1.4")
            peer.shutdown(socket.SHUT_RDWR)
        elif ends == "being unplugged":
            (kernel.device("1-1.4") / "busnum").unlink()  # which is the first that goes
            kernel.announce()
        else:
            os.kill(exporter.pid, getattr(signal, ends))
        assert exporter.code() == 0
    (told_last,) = entries()
    assert told_last.pop("SECONDS").isdigit()
    assert told_last["MESSAGE"].startswith("USB device 1-1.4 (12ab:00cd) was detached from work af")
    assert told_last["MESSAGE"].endswith(f" s: {why}")
    assert (told_last["MESSAGE_ID"], told_last["REASON"]) == (journal.DETACHED, why)
    assert kernel.locks() == []


def test_an_export_that_fails(
    kernel: FakeKernel, peer: socket.socket, agent: list[int], entries: Entries
) -> None:
    assert run(kernel, "usb-export", "9-9") == 3
    (entry,) = entries()
    assert entry["MESSAGE"].startswith("USB device 9-9 was not attached to work: no USB device 9-9")
    assert entry["MESSAGE"].endswith(" [UP-301]")
    assert (entry["MESSAGE_ID"], entry["ERROR"]) == (journal.FAILED, "UP-301")
    assert (entry["PRIORITY"], entry["REASON"]) == ("4", "failed")


def test_of_two_failures_none_is_lost(kernel: FakeKernel, entries: Entries) -> None:
    entry = journal.Entry(kernel, "2-1", "sys-usb", is_import=True)
    for is_attached in (False, True):
        if is_attached:
            entry.attached(3)
        entries()
        try:
            try:
                raise PeerError("UP-641", announced="a", came="b")
            finally:
                raise SystemLackError("UP-714", attachment="sys-usb-2-1", port=3)
        except SystemLackError as error:
            entry.failed(error)
        (told,) = entries()
        assert "[UP-641]; then: " in told["MESSAGE"]
        assert told["MESSAGE"].endswith("[UP-714]")
        assert told["ERROR"] == "UP-641"


def test_an_import_that_fails(
    kernel: FakeKernel, peer: socket.socket, agent: list[int], entries: Entries
) -> None:
    kernel.add_vhci()
    peer.sendall(b"nonsense\nMESSAGE=forged\n")
    assert run(kernel, "usb-import", "/run/qubes/usb-import-sys-usb-2-1.state") == 6
    (entry,) = entries()
    assert "of sys-usb was not attached to this qube: the qube with the" in entry["MESSAGE"]
    assert (entry["PEER"], entry["DEVICE"], entry["ROLE"]) == ("sys-usb", "2-1", "importer")


def die(kernel: FakeKernel, name: str, note: str, told: str) -> None:
    """Leave a lock and its notice behind as a killed process does."""

    def body() -> None:
        lock = Lock(kernel, name)
        assert lock.acquire(0)
        lock.note(note)
        if told:
            lock.tell(told)

    with Child(body) as child:
        assert child.code() == 0


def test_deaths_are_told_of_when_they_are_repaired(kernel: FakeKernel, entries: Entries) -> None:
    kernel.add_vhci()
    die(kernel, "export-2-1", "1", "work")
    die(kernel, "export-2-2", "1", "")
    die(kernel, "import-my-usb-0x12ab.0x00cd", "2 131077", "2")
    repair.repair(kernel)
    told = entries()
    why = "repaired after a death"
    assert [entry["MESSAGE"].removesuffix(f": {why}").split(" after ")[0] for entry in told] == [
        "USB device 2-1 was detached from work",
        "USB device 2-2 was detached from a qube",
        "USB device 0x12ab.0x00cd of my-usb was detached from this qube",
    ]
    assert [(e["REASON"], "SECONDS" in e) for e in told] == [(why, True), (why, False), (why, True)]
    assert kernel.locks() == []
    leave(kernel, "export-2-1", "1")
    exports.take_back(kernel, BusId("2-1"))
    die(kernel, "import-sys-usb-2-1", "2 131077", "2")
    kernel.occupy(2, 131077)
    imports.detach(kernel, DomainName("sys-usb"), BusId("2-1"))
    assert [entry["DEVICE"] for entry in entries()] == ["2-1", "2-1"]


def test_nobody_forges_a_field(kernel: FakeKernel, entries: Entries) -> None:
    entry = journal.Entry(kernel, "2-1\nPRIORITY=0", "work\0\nX=1", is_import=True)
    entry.failed(PeerError("UP-601", answer="a\nUSB_PROXY_PEER=dom0\x1b[31m \N{SNOWMAN}"))
    (told,) = entries()
    assert "X" not in told and told["PRIORITY"] == "4"
    assert " gave a bad answer: 'a USB_PROXY_PEER=dom0 [31m ?' is" in told["MESSAGE"]


@pytest.mark.parametrize("state", ["absent", "gone", "full"])
def test_without_a_journal_nothing_fails(kernel: FakeKernel, state: str) -> None:
    entry = journal.Entry(kernel, "2-1", "work", is_import=False)
    path = kernel.tree / "run/systemd/journal/socket"
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        if state != "absent":
            journald.bind(str(path))
        if state == "gone":
            journald.close()
        for _ in range(1000):  # More than a queue holds: max_dgram_qlen of unix(7) is far less.
            entry.attached()


def test_what_cannot_be_repaired_is_told(kernel: FakeKernel, entries: Entries) -> None:
    """Whoever called the exporter is told nothing of it: it may be another qube's device."""
    kernel.plug("2-1", None)
    for name, text in (("match_busid", "add 2-1"), ("bind", "2-1")):
        kernel.write(f"/sys/bus/usb/drivers/usbip-host/{name}", text)
    leave(kernel, "export-2-1", "1")
    kernel.refuse["rebind"] = 5
    assert run(kernel, "usb-repair") == ExitCode.SYSTEM
    (entry,) = entries()
    assert (entry["DEVICE"], entry["REASON"], entry["ERROR"]) == ("2-1", "failed", "UP-712")
