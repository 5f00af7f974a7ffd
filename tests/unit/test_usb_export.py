# SPDX-License-Identifier: GPL-2.0-or-later
"""The exporter, from the service call to the device's return."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import sys
from typing import TYPE_CHECKING

import pytest

import usb_proxy
from usb_proxy import endings, qrexec, start
from usb_proxy.backend import exports, reenumeration
from usb_proxy.commands import usb_export, usb_import
from usb_proxy.errors import ExitCode
from usb_proxy.idents import BusId
from usb_proxy.sysfs import UsbDevice

from .fake_machine import open_files, show, shut_down
from .processes import Child, Running, hold, leave, program, run, wait_for
from .test_journal import entries

if TYPE_CHECKING:
    from .fake_kernel import FakeKernel
    from .test_journal import Entries

__all__ = ["entries"]

SERVICES = "run/qubes-service"


@pytest.fixture(autouse=True)
def called(kernel: FakeKernel, peer: socket.socket, agent: list[int]) -> list[int]:
    """A call of the service in a qube with one device."""
    kernel.plug("1-1.4", devnum="5")
    return agent


def assert_clean(kernel: FakeKernel, driver: str | None = "usb", ended: str | None = None) -> None:
    """Nothing of an export is left but, for dom0, why it ended."""
    assert kernel.driver("1-1.4") == driver
    told = {} if ended is None else {"x-ended": ended}
    assert (kernel.published("1-1_4"), kernel.locks(), kernel.table()) == (told, [], {})


def refused(kernel: FakeKernel, code: int, said: str, argument: str = "1-1.4") -> None:
    """Run the exporter, which fails with one sentence and leaves nothing."""
    assert run(kernel, "usb-export", argument) == code
    line = kernel.said()
    assert line.startswith("usb-export: ") and line.count("\n") == 1
    assert said in line
    assert "Traceback" not in line


@pytest.mark.parametrize("argument", ["1-1.4", "0x12ab.0x00cd", "0x12AB.0x00CD"])
@pytest.mark.parametrize("frontend", ["work", "work-dm"])
def test_a_device_is_exported_until_the_peer_closes(
    kernel: FakeKernel, peer: socket.socket, agent: list[int], argument: str, frontend: str
) -> None:
    kernel.environment = {**kernel.environment, "QREXEC_REMOTE_DOMAIN": frontend}
    exporter = Running(kernel, "usb-export", argument)
    assert peer.recv(100) == b"131077 480\n"
    expected = {"connected-to": "work", "x-pid": str(os.getpid()), "x-ended": "detached"}
    wait_for(lambda: kernel.published("1-1_4") == expected, "the publication")
    assert agent == [signal.SIGUSR1]
    assert kernel.calls("qubesdb-write")[0][-2:] == ["/qubes-usb-devices", ""]
    assert (kernel.driver("1-1.4"), kernel.status("1-1.4")) == ("usbip-host", 2)
    assert kernel.locks() == ["export-1-1.4.lock", "export-1-1.4.notice"]
    assert exporter.is_running()
    peer.close()
    assert exporter.code() == ExitCode.OK
    assert kernel.calls("qubesdb-write")[1:] == [["/qubes-usb-devices", ""]]
    assert_clean(kernel, ended="detached")
    assert kernel.said() == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_signal_ends_the_export_in_order(
    kernel: FakeKernel, peer: socket.socket, number: int
) -> None:
    with program(kernel, "usb-export", "1-1.4") as exporter:
        wait_for(lambda: len(kernel.published("1-1_4")) == 3, "the publication")
        os.kill(exporter.pid, number)
        assert exporter.code() == ExitCode.OK
    assert peer.recv(100) == b"131077 480\n"
    assert peer.recv(100) == b""
    assert_clean(kernel, ended="detached" if number == signal.SIGTERM else "died")


@pytest.mark.parametrize("ends", [True, False])
def test_an_unplugged_device_ends_the_export(
    kernel: FakeKernel, peer: socket.socket, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    monkeypatch.setattr(usb_export, "EARLY_SECONDS", 0.0)
    exporter = Running(kernel, "usb-export", "1-1.4")
    wait_for(lambda: len(kernel.published("1-1_4")) == 3, "the publication")
    kernel.unplug("1-1.4", ends)
    kernel.plug("1-1.4", "other")
    assert exporter.code() == ExitCode.OK
    assert_clean(kernel, "other")


def test_a_device_is_kept_from_drivers_where_that_is_wished(
    kernel: FakeKernel, peer: socket.socket
) -> None:
    (kernel.tree / SERVICES / "usb-proxy-keep-unbound").touch()
    exporter = Running(kernel, "usb-export", "1-1.4")
    peer.recv(100)
    peer.close()
    assert exporter.code() == ExitCode.OK
    assert_clean(kernel, None, "detached")
    assert (kernel.device("1-1.4") / "authorized").read_text() == "0\n"


def test_one_that_is_kept_is_not_reset_when_it_is_taken_back(
    kernel: FakeKernel, peer: socket.socket
) -> None:
    """Its port is claimed before it loses its configuration, and stays so to the end."""
    (kernel.tree / SERVICES / "usb-proxy-keep-unbound").touch()
    with program(kernel, "usb-export", "1-1.4") as exporter:
        wait_for(lambda: len(kernel.published("1-1_4")) == 3, "the publication")
        os.kill(exporter.pid, signal.SIGTERM)
        assert exporter.code() == ExitCode.OK
    assert_clean(kernel, None, "detached")
    assert (kernel.device("1-1.4") / "authorized").read_text() == "0\n"
    assert not kernel.is_claimed("1-1.4")


def test_a_port_is_shut_before_the_device_is_let_go(kernel: FakeKernel) -> None:
    kernel.unplug("1-1.4")
    (kernel.plug("1-1.4", "usbip-host") / "usbip_status").write_text("2\n")
    claimed: list[bool] = []
    kernel.before["authorized"] = lambda: claimed.append(kernel.is_claimed("1-1.4"))
    with UsbDevice(kernel, BusId("1-1.4")) as device:
        port = reenumeration.release_shut(kernel, device)
        assert (claimed, kernel.is_claimed("1-1.4")) == ([True], True)
        assert (kernel.driver("1-1.4"), device.is_authorized()) == (None, False)
        assert [line.split()[0] for line in kernel.written] == ["unbind", "authorized"]
        port.release()
    assert not kernel.is_claimed("1-1.4")


@pytest.mark.parametrize(
    ("state", "said", "shortest", "longest"),
    [
        ("", "[UP-423]", exports.GIVE_BACK_SECONDS, usb_import.LINE_SECONDS),
        ("attached", "[UP-401]", 0, exports.START_SECONDS),
        ("ending", "[UP-422]", exports.GIVE_BACK_SECONDS, usb_import.LINE_SECONDS),
    ],
)
def test_who_has_the_device_is_waited_for_only_if_it_is_ending_or_may_fail(
    kernel: FakeKernel, state: str, said: str, shortest: float, longest: float
) -> None:
    kernel.haste = 10
    start = kernel.now()
    with hold(kernel, "export-1-1.4", exports.note(kernel, None, state)):
        refused(kernel, ExitCode.IN_USE, said)
        assert kernel.locks() == ["export-1-1.4.lock"]
    assert kernel.written == []
    assert shortest < kernel.now() - start < longest


@pytest.mark.parametrize("lasts", [False, True])
def test_a_device_that_cannot_be_looked_at_is_given_back(
    kernel: FakeKernel, peer: socket.socket, monkeypatch: pytest.MonkeyPatch, lasts: bool
) -> None:
    """The look at its driver fails at the end, once or from then on."""
    exporter = Running(kernel, "usb-export", "1-1.4")
    wait_for(lambda: len(kernel.published("1-1_4")) == 3, "the publication")
    really = UsbDevice.driver

    def fail(device: UsbDevice) -> str | None:
        if not lasts:
            monkeypatch.setattr(UsbDevice, "driver", really)
        raise device.failure("look at", OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)))

    monkeypatch.setattr(UsbDevice, "driver", fail)
    peer.close()
    assert exporter.code() == ExitCode.SYSTEM
    assert kernel.said().count("\n") == 1 and "did not look at 1-1.4" in kernel.said()
    assert (kernel.driver("1-1.4"), kernel.table()) == ("usb", {})
    assert kernel.published("1-1_4") == {"x-ended": "detached"}


def test_who_was_starting_is_refused_once_it_is_seen_to_lend(kernel: FakeKernel) -> None:
    kernel.haste = 10
    start = kernel.now()
    path = kernel.tree / "run/qubes-usb-proxy/export-1-1.4.lock"
    with hold(kernel, "export-1-1.4", exports.note(kernel, None)):
        exporter = Running(kernel, "usb-export", "1-1.4")
        wait_for(lambda: kernel.now() > start + endings.NEWS_SECONDS + 2, "its first look")
        path.write_text(exports.note(kernel, None, endings.ATTACHED) + "\n")
        assert exporter.code() == ExitCode.IN_USE
    assert "[UP-401]" in kernel.said()
    assert kernel.now() - start < exports.GIVE_BACK_SECONDS / 2


def test_who_starts_slowly_and_fails_is_waited_for(kernel: FakeKernel, peer: socket.socket) -> None:
    """As with a phone, which leaves the bus and comes back several times."""
    kernel.haste = 10
    start = kernel.now()
    with hold(kernel, "export-1-1.4", exports.note(kernel, None)):
        exporter = Running(kernel, "usb-export", "1-1.4")
        wait_for(lambda: kernel.now() > start + 15, "a slow start")
    assert peer.recv(100) == b"131077 480\n"
    peer.close()
    assert exporter.code() == ExitCode.OK


def test_an_exporter_says_what_it_does(kernel: FakeKernel, peer: socket.socket) -> None:
    lock = kernel.tree / "run/qubes-usb-proxy/export-1-1.4.lock"
    notes: list[str] = []
    for file in ("match_busid", "rebind"):
        kernel.before[file] = lambda: notes.append(lock.read_text().splitlines()[0])
    exporter = Running(kernel, "usb-export", "1-1.4")
    attached = f"{os.getpid()} attached\n"
    wait_for(lambda: lock.exists() and lock.read_text() == attached, "its note")
    peer.close()
    assert exporter.code() == ExitCode.OK
    assert notes == [str(os.getpid()), f"{os.getpid()} ending"]


def test_a_device_that_has_left_another_exporter_is_not_there(kernel: FakeKernel) -> None:
    kernel.haste = 100
    kernel.unplug("1-1.4")
    with hold(kernel, "export-1-1.4", exports.note(kernel, None, endings.ENDING)):
        refused(kernel, ExitCode.NO_DEVICE, "no USB device 1-1.4 is plugged in")


def test_a_device_that_another_program_has_is_refused(kernel: FakeKernel) -> None:
    kernel.unplug("1-1.4")
    (kernel.plug("1-1.4", "usbip-host") / "usbip_status").write_text("2\n")
    refused(kernel, ExitCode.IN_USE, "another program has exported USB device 1-1.4")
    assert (kernel.locks(), kernel.written) == ([], [])


def test_a_device_of_a_killed_exporter_is_taken_over(
    kernel: FakeKernel, peer: socket.socket
) -> None:
    with program(kernel, "usb-export", "1-1.4") as exporter:
        wait_for(lambda: len(kernel.published("1-1_4")) == 3, "the publication")
        exporter.kill()
    assert (kernel.driver("1-1.4"), kernel.status("1-1.4")) == ("usbip-host", 2)
    near, far = socket.socketpair()
    with near, far:
        kernel.link = near.fileno()
        second = Running(kernel, "usb-export", "1-1.4")
        assert far.recv(100) == b"131077 480\n"
        own = {"connected-to": "work", "x-pid": str(os.getpid()), "x-ended": "detached"}
        wait_for(lambda: kernel.published("1-1_4") == own, "the publication")
        shut_down(far)
        assert second.code() == ExitCode.OK
    assert_clean(kernel, ended="detached")


def test_what_a_killed_exporter_left_is_gone_also_if_the_next_fails(kernel: FakeKernel) -> None:
    with program(kernel, "usb-export", "1-1.4") as exporter:
        wait_for(lambda: len(kernel.published("1-1_4")) == 3, "the publication")
        exporter.kill()
    kernel.environment = {**kernel.environment, "QREXEC_AGENT_PID": "2"}
    refused(kernel, ExitCode.REQUEST, "is not the agent that started this")
    assert_clean(kernel, ended="died")


def test_what_a_killed_exporter_left_is_repaired(kernel: FakeKernel) -> None:
    with program(kernel, "usb-export", "1-1.4") as exporter:
        wait_for(lambda: len(kernel.published("1-1_4")) == 3, "the publication")
        exporter.kill()
    assert run(kernel, "usb-repair") == ExitCode.OK
    assert_clean(kernel, ended="died")


@pytest.mark.parametrize(
    ("argument", "code", "said"),
    [
        ("2-1", ExitCode.NO_DEVICE, "no USB device 2-1 is plugged in"),
        ("0x1111.0x2222", ExitCode.NO_DEVICE, "no USB device 0x1111.0x2222 is plugged in"),
        ("", ExitCode.REQUEST, "names no USB device"),
        ("../1-1.4", ExitCode.REQUEST, "names no USB device"),
        ("1-1.4:1.0", ExitCode.REQUEST, "is one interface"),
        ("usb2", ExitCode.REQUEST, "is a root hub"),
        ("\N{ARABIC-INDIC DIGIT ONE}-1", ExitCode.REQUEST, "names no USB device"),
        ("x" * 3000 + "\n\033", ExitCode.REQUEST, "x..."),
    ],
)
def test_bad_arguments_are_refused(kernel: FakeKernel, argument: str, code: int, said: str) -> None:
    refused(kernel, code, said, argument)
    assert (kernel.written, kernel.locks()) == ([], [])


def test_the_callers_side_is_checked(kernel: FakeKernel, agent: list[int]) -> None:
    good = dict(kernel.environment)
    for bad in ({"QREXEC_REMOTE_DOMAIN": "../x"}, {"QREXEC_AGENT_PID": "1"}):
        kernel.environment = good | bad
        assert run(kernel, "usb-export", "1-1.4") == ExitCode.REQUEST
        assert_clean(kernel)
    assert run(kernel, "usb-export") == run(kernel, "usb-export", "a", "b") == ExitCode.REQUEST
    assert agent == []
    kernel.privileged = False
    assert run(kernel, "usb-export", "1-1.4") == ExitCode.SYSTEM
    assert kernel.said().count("\n") == 5


def test_a_peer_that_left_before_the_line_is_told_of(
    kernel: FakeKernel, peer: socket.socket
) -> None:
    peer.close()
    refused(kernel, ExitCode.PEER, "closed the connection")
    assert_clean(kernel)


@pytest.mark.parametrize(
    ("broken", "body"), [("qubesdb-write", "echo no >&2; exit 1"), ("all", "")]
)
def test_without_qubesdb_nothing_is_exported(kernel: FakeKernel, broken: str, body: str) -> None:
    if body:
        kernel.command(broken, body)
        said = "qubesdb-write failed (no), so dom0 cannot see what is attached; restart qubes-db"
    else:
        (kernel.tree / "usr/bin").rename(kernel.tree / "usr/none")
        said = "the command qubesdb-write is not installed"
    refused(kernel, ExitCode.SYSTEM, said)
    # Whether a key was written nobody knows, so that is left for the next one to clean up.
    lock, notice = sorted((kernel.tree / "run/qubes-usb-proxy").iterdir())
    assert (bool(lock.read_text()), str(notice.readlink())) == (True, "work")
    lock.unlink()
    notice.unlink()
    assert_clean(kernel)


def test_without_room_nothing_is_exported(kernel: FakeKernel) -> None:
    """A folder in the notice's place fails in the same way as a full file system."""
    (kernel.tree / "run/qubes-usb-proxy/export-1-1.4.notice").mkdir(parents=True)
    refused(kernel, ExitCode.SYSTEM, "export-1-1.4.notice: File exists; make room in /run")
    assert (kernel.driver("1-1.4"), kernel.published("1-1_4")) == ("usb", {})


def test_without_the_kernels_driver_nothing_is_exported(kernel: FakeKernel) -> None:
    kernel.unload("usbip-host")
    kernel.command("modprobe", "echo modprobe: FATAL >&2; exit 1")
    refused(kernel, ExitCode.SYSTEM, "usbip-host cannot be loaded (modprobe: FATAL)")


@pytest.mark.parametrize("step", ["match_busid", "bind", "usbip_sockfd"])
@pytest.mark.parametrize(
    ("again", "how"),
    [(False, "has not come back (8 s)"), (True, "another one took its place; ")],
)
def test_a_device_that_goes_is_told_of(
    kernel: FakeKernel, peer: socket.socket, step: str, again: bool, how: str
) -> None:
    def go() -> None:
        kernel.unplug("1-1.4")
        if again:
            kernel.plug("1-1.4", "other", idVendor="dead")

    kernel.haste = 20
    kernel.before[step] = go
    if step == "usbip_sockfd":
        how = "went away"
    refused(kernel, ExitCode.NO_DEVICE, how)
    assert (kernel.locks(), kernel.published("1-1_4")) == ([], {})
    assert not again or kernel.driver("1-1.4") == "other"


def test_a_device_that_replaced_the_one_that_was_asked_for_is_not_exported(
    kernel: FakeKernel,
) -> None:
    """It was found by its vendor and product before there was a lock."""
    with hold(kernel, "export-1-1.4", release=True) as holder:
        exporter = Running(kernel, "usb-export", "0x12ab.0x00cd")
        path = str(kernel.tree / "run/qubes-usb-proxy/export-1-1.4.lock")
        wait_for(lambda: path in open_files(), "the exporter to wait for the lock")
        kernel.unplug("1-1.4")
        kernel.plug("1-1.4", idVendor="dead")
        os.kill(holder.pid, signal.SIGTERM)
        assert exporter.code() == ExitCode.NO_DEVICE
    assert "another USB device took the place of 0x12ab.0x00cd" in kernel.said()
    assert_clean(kernel)


def test_what_was_taken_in_its_place_is_given_back(kernel: FakeKernel) -> None:
    """The kernel unbinds and binds by name."""

    def swap() -> None:
        kernel.unplug("1-1.4")
        kernel.plug("1-1.4", None, idVendor="dead")

    kernel.haste = 20
    kernel.before["bind"] = swap
    refused(kernel, ExitCode.NO_DEVICE, "another one took its place; ")
    assert_clean(kernel)


# usbguard and resets.


def test_usbguard_is_told_of_the_device(kernel: FakeKernel, peer: socket.socket) -> None:
    """What it blocks is allowed once usbip-host has it, and blocked before that lets it go."""
    kernel.command("usbguard")
    (kernel.device("1-1.4") / "authorized").write_text("0\n")
    exporter = Running(kernel, "usb-export", "1-1.4")
    peer.recv(100)
    assert (kernel.device("1-1.4") / "authorized").read_text() == "1\n"
    written = " ".join(kernel.written)
    assert "bind 1-1.4 authorized 1" in written
    peer.close()
    assert exporter.code() == ExitCode.OK
    rule = 'id 12ab:00cd via-port "1-1.4"'
    assert kernel.calls("usbguard") == [["allow-device", rule], ["block-device", rule]]
    assert (kernel.device("1-1.4") / "authorized").read_text() == "0\n"
    end = [line for line in kernel.written if line.split()[0] in ("authorized", "unbind", "rebind")]
    assert end[-3:] == ["authorized 0", "unbind 1-1.4", "rebind 1-1.4"]
    assert_clean(kernel, ended="detached")


@pytest.mark.parametrize("seconds", [1, 30])
def test_usbguard_may_be_slow(
    kernel: FakeKernel, peer: socket.socket, entries: Entries, seconds: int
) -> None:
    """It hears of the end all the same, or the journal tells that it did not."""
    (kernel.device("1-1.4") / "authorized").write_text("0\n")
    kernel.command("usbguard", f"sleep {seconds}; echo $1 >> {kernel.tree}/heard")
    kernel.haste = 3
    exporter = Running(kernel, "usb-export", "1-1.4")
    peer.recv(100)
    peer.close()
    assert exporter.code() == ExitCode.OK
    errors = [entry["ERROR"] for entry in entries() if "ERROR" in entry]
    heard = kernel.tree / "heard"
    if seconds == 1:
        assert (heard.read_text(), errors) == ("allow-device\nblock-device\n", [])
    else:
        assert (heard.exists(), errors) == (False, ["UP-703", "UP-703"])
    assert_clean(kernel, ended="detached")


@pytest.mark.parametrize("default", ["0", "1"])
def test_what_has_an_interface_turned_off_is_given_back_blocked(
    kernel: FakeKernel, peer: socket.socket, default: str
) -> None:
    """The kernel would turn it on again, unless the bus is closed for all."""
    home = kernel.device("1-1.4")
    (kernel.tree / "sys/bus/usb/devices/usb1").mkdir(exist_ok=True)
    bus = kernel.tree / "sys/bus/usb/devices/usb1/interface_authorized_default"
    bus.write_text(f"{default}\n")
    (home / "1-1.4:1.0").mkdir()
    (home / "1-1.4:1.0/authorized").write_text("0\n")
    exporter = Running(kernel, "usb-export", "1-1.4")
    peer.recv(100)
    peer.close()
    assert exporter.code() == ExitCode.OK
    assert (home / "authorized").read_text() == ("0\n" if default == "1" else "1\n")
    assert_clean(kernel, ended="detached")


def test_usbguard_is_not_asked_about_what_it_allows(
    kernel: FakeKernel, peer: socket.socket
) -> None:
    kernel.command("usbguard")
    exporter = Running(kernel, "usb-export", "1-1.4")
    peer.recv(100)
    peer.close()
    assert exporter.code() == ExitCode.OK
    assert kernel.calls("usbguard") == []


@pytest.mark.parametrize("usbguard", ["", "echo IPC down >&2; exit 1", "exec sleep 30", None])
@pytest.mark.parametrize("end", ["in order", "killed", "refused"])
def test_what_was_not_authorized_is_so_while_it_is_lent(
    kernel: FakeKernel, peer: socket.socket, usbguard: str | None, end: str
) -> None:
    """By the kernel's default, or by a usbguard that runs or has stopped."""
    authorized = kernel.device("1-1.4") / "authorized"
    authorized.write_text("0\n")
    (kernel.device("1-1.4") / "bConfigurationValue").write_text("\n")
    if usbguard is not None:
        kernel.command("usbguard", usbguard)
        kernel.haste = 20 if "sleep" in usbguard else 1
    if end == "refused":
        kernel.refuse["usbip_sockfd"] = errno.EINVAL
        refused(kernel, ExitCode.SYSTEM, "did not hand over 1-1.4")
        del kernel.refuse["usbip_sockfd"]
    else:
        with program(kernel, "usb-export", "1-1.4") as exporter:
            wait_for(lambda: len(kernel.published("1-1_4")) == 3, "the publication")
            assert authorized.read_text() == "1\n"
            if end == "killed":
                exporter.kill()
                assert run(kernel, "usb-repair") == ExitCode.OK
            else:
                shut_down(peer)
                assert exporter.code() == ExitCode.OK
    assert authorized.read_text() == "0\n"
    assert (kernel.device("1-1.4") / "bConfigurationValue").read_text() == "\n"
    assert_clean(kernel, ended={"in order": "detached", "killed": "died"}.get(end))


def test_what_a_dead_exporter_allowed_is_blocked_by_the_next(
    kernel: FakeKernel, peer: socket.socket
) -> None:
    authorized = kernel.device("1-1.4") / "authorized"
    authorized.write_text("0\n")
    with program(kernel, "usb-export", "1-1.4") as exporter:
        wait_for(lambda: len(kernel.published("1-1_4")) == 3, "the publication")
        exporter.kill()
    assert authorized.read_text() == "1\n"
    near, far = socket.socketpair()
    with near, far:
        kernel.link = near.fileno()
        second = Running(kernel, "usb-export", "1-1.4")
        assert far.recv(100)
        shut_down(far)
        assert second.code() == ExitCode.OK
    assert authorized.read_text() == "0\n"
    assert_clean(kernel, ended="detached")


@pytest.mark.parametrize("argument", ["1-1.4", "0x12ab.0x00cd"])
def test_a_device_that_the_platform_does_not_offer_is_not_lent(
    kernel: FakeKernel, argument: str
) -> None:
    show(kernel.tree / "run/udev/data/c189:2", "E:QUBES_EXPORT_USB_DEVICE=0\n")
    refused(kernel, ExitCode.NO_DEVICE, "forbids lending USB device 1-1.4", argument)
    assert kernel.written == []
    assert_clean(kernel)


def test_udev_is_waited_for_but_not_for_ever(kernel: FakeKernel, peer: socket.socket) -> None:
    """What it has to say of a device counts, but it may be waiting for us."""
    database = kernel.tree / "run/udev/data/c189:2"
    database.unlink()
    exporter = Running(kernel, "usb-export", "1-1.4")
    assert peer.recv(100) == b"131077 480\n"
    wait_for(lambda: len(kernel.published("1-1_4")) == 3, "the publication")
    # udev goes on at last, and the platform's rules tell dom0 of a new device.
    shutil.rmtree(kernel.tree / "db/qubes-usb-devices/1-1_4")
    database.touch()
    kernel.announce()
    wait_for(lambda: len(kernel.published("1-1_4")) == 3, "the second publication")
    peer.close()
    assert exporter.code() == ExitCode.OK
    assert_clean(kernel, ended="detached")


@pytest.mark.parametrize("end", ["plain", "kept and blocked", "refused by the kernel"])
def test_nothing_is_loaded_any_more_once_it_sleeps(
    kernel: FakeKernel, peer: socket.socket, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """The package may be another one by then."""
    if end == "kept and blocked":
        kernel.haste = 20
        (kernel.tree / SERVICES / "usb-proxy-keep-unbound").touch()
        (kernel.device("1-1.4") / "authorized").write_text("0\n")

    def body() -> int:
        for name in [n for n in sys.modules if n.startswith(("usb_proxy.cat", "usb_proxy.ree"))]:
            del sys.modules[name]
        for name in ("catalogue", "reenumeration"):
            vars(usb_proxy).pop(name, None)
        kernel.guard_signals()
        sleeping: set[str] = set()
        await_end = qrexec.Link.await_end

        def sleep(link: qrexec.Link, watch: int) -> bool:
            sleeping.update(sys.modules)
            return await_end(link, watch)

        monkeypatch.setattr(qrexec.Link, "await_end", sleep)
        code = start.run(start.load("usb-export"), ["usb-export", "1-1.4"], kernel)
        print(set(sys.modules) - sleeping)
        return bool(sleeping and set(sys.modules) - sleeping) or code

    if end == "refused by the kernel":
        kernel.refuse["rebind"] = errno.EIO
    with Child(body) as exporter:
        wait_for(lambda: len(kernel.published("1-1_4")) == 3, "the publication")
        shut_down(peer)
        assert exporter.code() == (ExitCode.SYSTEM if end == "refused by the kernel" else 0)


@pytest.mark.parametrize("wish", ["service", "property", None])
def test_a_device_is_reset_where_that_is_wished(
    kernel: FakeKernel, peer: socket.socket, wish: str | None
) -> None:
    """That the reset was tried shows in its failure."""
    kernel.resets = None
    if wish == "service":
        (kernel.tree / SERVICES / "usb-reset-on-attach").touch()
    if wish == "property":
        (kernel.device("1-1.4") / "dev").write_text("189:4\n")
        show(kernel.tree / "run/udev/data/c189:4", "E:QUBES_USB_RESET=1\n")
    if wish:
        refused(kernel, ExitCode.NO_DEVICE, "1-1.4 did not survive its reset")
    else:
        exporter = Running(kernel, "usb-export", "1-1.4")
        assert peer.recv(100)
        peer.close()
        assert exporter.code() == ExitCode.OK
    assert_clean(kernel, ended=None if wish else "detached")


@pytest.mark.parametrize("driver", [None, "usbip-host"])
@pytest.mark.parametrize("keep_unbound", [False, True])
def test_a_device_that_was_cut_off_is_reset(
    kernel: FakeKernel, peer: socket.socket, driver: str | None, *, keep_unbound: bool
) -> None:
    """As its exporter and whoever repairs died; but never where it might become another one."""
    kernel.unplug("1-1.4")
    kernel.plug("1-1.4", driver)
    if keep_unbound:
        (kernel.tree / SERVICES / "usb-proxy-keep-unbound").touch()
    exporter = Running(kernel, "usb-export", "1-1.4")
    assert peer.recv(100)
    peer.close()
    assert exporter.code() == ExitCode.OK
    assert len(kernel.resets or ()) == (not keep_unbound)


def test_a_lock_left_by_one_that_did_nothing_yet_is_no_hindrance(
    kernel: FakeKernel, peer: socket.socket
) -> None:
    leave(kernel, "export-1-1.4", "1")
    exporter = Running(kernel, "usb-export", "1-1.4")
    assert peer.recv(100)
    peer.close()
    assert exporter.code() == ExitCode.OK
    assert_clean(kernel, ended="detached")


@pytest.mark.parametrize("how", ["udev is late", "it came back"])
def test_a_rule_that_is_known_later_forbids_it_all_the_same(
    kernel: FakeKernel, peer: socket.socket, how: str
) -> None:
    forbids = "E:QUBES_EXPORT_USB_DEVICE=0\n"
    if how == "udev is late":
        (kernel.tree / "run/udev/data/c189:2").unlink()
        exporter = Running(kernel, "usb-export", "1-1.4")
        assert peer.recv(100) == b"131077 480\n"
        wait_for(lambda: len(kernel.published("1-1_4")) == 3, "the publication")
        show(kernel.tree / "run/udev/data/c189:2", forbids)
        kernel.announce()
    else:
        kernel.haste = 3
        (kernel.device("1-1.4") / "serial").write_text("0123\n")
        kernel.returns["1-1.4"] = [{"serial": "0123", "devnum": "6", "dev": "189:9"}]
        show(kernel.tree / "run/udev/data/c189:2", "E:QUBES_USB_REENUMERATES=1\n")
        show(kernel.tree / "run/udev/data/c189:9", forbids)
        exporter = Running(kernel, "usb-export", "1-1.4")
    assert exporter.code() == ExitCode.NO_DEVICE
    assert "forbids lending USB device 1-1.4" in kernel.said()
    assert not {"export-1-1.4.lock", "export-1-1.4.notice"} & set(kernel.locks())
    assert kernel.driver("1-1.4") == "usb"
