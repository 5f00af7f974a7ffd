# SPDX-License-Identifier: GPL-2.0-or-later
"""The service that attaches: what it asks qrexec for, and what it makes of the answers."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from usb_proxy import endings, suspend
from usb_proxy.commands import usb_attach, usb_import
from usb_proxy.errors import ExitCode
from usb_proxy.frontend import enumeration, imports, vhci

from .processes import program, run, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .fake_kernel import FakeKernel

CLIENT = "qrexec-client-vm"
REQUEST = b"sys-usb 2-1\n"
ANNOUNCEMENT = b"46f4:0001 *\n"
NUL, IN_USE, PEER = "\\0", "\\004", "\\006"
"""Exit codes, as a report starts with one."""


class Client:
    """The stand-in for qrexec-client-vm: a shell script, whose `$5` is the FD for the report."""

    def __init__(self, kernel: FakeKernel) -> None:
        self._kernel = kernel

    def does(self, body: str) -> None:
        """Make it do this."""
        pid = self._kernel.tree / "pid"
        self._kernel.command(CLIENT, f"echo $$ > {pid}.new; mv {pid}.new {pid}\n{body}")

    def pid(self) -> int:
        """Its process; 0 before there is one."""
        path = self._kernel.tree / "pid"
        return int(path.read_text()) if path.exists() else 0

    def is_there(self) -> bool:
        return self.pid() > 0 and os.path.exists(f"/proc/{self.pid()}/exe")


@pytest.fixture
def listening(kernel: FakeKernel, peer: socket.socket) -> Iterator[Client]:
    """A qube with ports, and a request that dom0 has not ended."""
    kernel.add_vhci()
    peer.sendall(REQUEST)
    client = Client(kernel)
    yield client
    if client.is_there():
        os.killpg(client.pid(), signal.SIGKILL)


@pytest.fixture
def client(listening: Client, peer: socket.socket) -> Client:
    """A request of one line, and its end."""
    peer.shutdown(socket.SHUT_WR)
    return listening


def report(text: str) -> str:
    """Shell code that writes to the report's pipe."""
    return f"printf '{text}' > /proc/self/fd/$5"


def test_success_is_told_and_the_call_stays(kernel: FakeKernel, client: Client) -> None:
    """It is in a session of its own, and has nothing of its caller's stdin, stdout and stderr."""
    fds = kernel.tree / "fds"
    client.does(
        f"""for fd in 0 1; do was="$was $(readlink /proc/$$/fd/$fd)"; done; echo "$was" > {fds}
        {report(NUL)}; exec sleep 99"""
    )
    assert run(kernel, "usb-attach") == ExitCode.OK
    record = "/run/qubes/usb-import-sys-usb-2-1.state"
    [(*call, fd)] = kernel.calls(CLIENT)
    assert call == ["sys-usb", "qubes.USB+2-1", "/usr/lib/qubes/usb-import", record]
    assert fd.isdigit()
    assert client.is_there()
    assert os.getsid(client.pid()) == client.pid()
    assert fds.read_text() == " /dev/null /dev/null\n"
    assert (kernel.said(), kernel.locks()) == ("", [])
    os.kill(client.pid(), signal.SIGKILL)
    os.waitpid(client.pid(), 0)


@pytest.mark.parametrize(
    ("second", "passed_on"),
    [(b"", []), (b"46f4:0001 080650\n", ["46f4:0001 080650"]), (b"46f4:0001 *", ["46f4:0001 *"])],
)
def test_what_dom0_announced_is_what_the_importer_is_told(
    kernel: FakeKernel, listening: Client, peer: socket.socket, second: bytes, passed_on: list[str]
) -> None:
    peer.sendall(second)
    peer.shutdown(socket.SHUT_WR)
    listening.does(report(NUL))
    assert run(kernel, "usb-attach") == ExitCode.OK
    [(*_, record, _fd)] = [call[:5] for call in kernel.calls(CLIENT)]
    assert kernel.calls(CLIENT)[0][5:] == passed_on
    assert record.endswith(".state")


@pytest.mark.parametrize(
    ("second", "said"),
    [(b"../x\n", "[UP-229]"), (b"46f4:0001 08\xff650\n", "[UP-229]"), (b"0" * 301, "[UP-212]")],
)
def test_a_second_line_that_announces_nothing(
    kernel: FakeKernel, listening: Client, peer: socket.socket, second: bytes, said: str
) -> None:
    peer.sendall(second)
    listening.does("exit 0")
    assert run(kernel, "usb-attach") == ExitCode.REQUEST
    assert kernel.said().endswith(f"{said}\n") and kernel.said().count("\n") == 1
    assert kernel.calls(CLIENT) == []


def test_who_writes_by_hand_may_keep_the_input_open(
    kernel: FakeKernel, listening: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("usb_proxy.qrexec.SECOND_LINE_SECONDS", 0.1)
    listening.does(report(NUL))
    assert run(kernel, "usb-attach") == ExitCode.OK


def test_in_suspend_nobody_is_called(kernel: FakeKernel, client: Client) -> None:
    """So that the backend does not even take the device."""
    suspend.mark(kernel, is_suspend=True)
    client.does(report(NUL))
    assert run(kernel, "usb-attach") == ExitCode.STOPPED
    assert kernel.said().endswith("[UP-805]\n")
    assert kernel.calls(CLIENT) == []


def test_success_may_have_a_warning(kernel: FakeKernel, client: Client) -> None:
    client.does(report("\\011odd [UP-642]"))
    assert run(kernel, "usb-attach") == ExitCode.OK
    assert kernel.said() == "usb-attach: odd [UP-642]\n"


NO_ROOM = "gntshr: error: ioctl failed: No space left on device"
THEIRS = "echo 'usb-export: a [UP-301]' >&2"
ANOTHER = report(PEER + "another one [UP-640]")
LOG = (
    "echo '2026-11-26 10:00:00.123 qrexec-client-vm[912]: process_io.c:240:x: vchan connection "
    "closed early' >&2"
)


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        (
            "exit 126",
            6,
            "dom0's policy does not let this qube call qubes.USB+2-1 in sys-usb, or sys",
        ),
        ("exit 125", 6, "has the service qubes.USB+2-1, but cannot run it"),
        ("exit 0", 6, "exit code 0"),
        ("exit 255", 6, "exit code 255"),
        ("echo Killed >&2; kill -9 $$", 8, "not attached: usb-import was killed by signal 9; try"),
        ("echo no such device 2-1 >&2; exit 3", 6, "attached: said on the way: no such device 2-1"),
        (f"{report(IN_USE + 'no port')}; exit 4", 4, "2-1 of sys-usb is not attached: no port"),
        (f"echo a >&2; {report(IN_USE + 'no port')}", 4, "not attached: no port [UP-608]"),
        (f"echo busy >&2; {report(PEER + 'closed')}", 6, "closed; said on the way: busy [UP-608]"),
        (f"{THEIRS}; {report(PEER + 'closed')}", 6, "attached: sys-usb says: usb-export: a [UP-"),
        (f"{THEIRS}; {report(IN_USE + 'b')}; sleep 1", 4, "b; sys-usb says: usb-export: a [UP-"),
        (f"{report(PEER + 'x')}; exit 126", 6, "not attached: x"),
        ("exit 127", 6, "sys-usb has no service qubes.USB+2-1; install"),
        (f"{report(PEER + 'y [UP-614]')}; exit 127", 6, "has no service qubes.USB+2-1; install"),
        (f"{report(PEER + 'y [UP-614]')}; exit 125", 6, "but cannot run it; reinstall"),
        (f"{LOG}; {report(PEER + 'x [UP-616]')}", 6, "attached: x [UP-616]; said on the way: 2026"),
        (f"{LOG}; {THEIRS}", 6, "attached: sys-usb says: usb-export: a [UP-301]\n"),
        (f"echo motd >&2; {THEIRS}; {LOG}", 6, "attached: sys-usb says: usb-export: a [UP-301]\n"),
        (f"{THEIRS}; {THEIRS}", 6, "usb-export: a [UP-301] usb-export: a [UP-301]\n"),
        ("echo 'usb-export: a' >&2", 6, "attached: said on the way: usb-export: a [UP-608]\n"),
        (f"echo motd >&2; {report(PEER + 'x [UP-616]')}", 6, "[UP-616]; said on the way: motd\n"),
        (LOG, 6, "attached: said on the way: 2026-11-26 10:00:00.123 qrexec-client-vm[912]: pro"),
        (f"echo '{NO_ROOM}' >&2; {LOG}; exit 1", 7, "no room for another connection; detach"),
        (f"echo '{NO_ROOM}' >&2; exit 6", 6, "attached: said on the way: gntshr: error: ioctl"),
        (f"echo 'cp: {NO_ROOM[-23:]}' >&2; exit 1", 6, "attached: said on the way: cp: No space"),
        (f"echo '{NO_ROOM}' >&2; {THEIRS}; exit 1", 6, "attached: sys-usb says: usb-export: a"),
        # A backend that lies about its device has no say in what is told of that.
        (f"{THEIRS}; {ANOTHER}; exit 6", 6, "is not attached: another one [UP-640]\n"),
        (f"echo '{NO_ROOM}' >&2; {ANOTHER}; exit 1", 6, "not attached: another one [UP-640]\n"),
        ("printf '\\033[2J\\377\\n\\0evil\\r\\n' >&2; exit 1", 6, "on the way: [2J evil"),
        ("head -c 3000 /dev/zero | tr '\\0' x >&2; exit 1", 6, "x" * 567 + "..." + "x" * 30),
        ("head -c 300000 /dev/zero | tr '\\0' x >&2; exit 1", 6, "x" * 567 + "..." + "x" * 30),
        (f"{report(NUL + 'more')}; exit 1", 6, "not attached: more"),
        (f"{report('x' + 'more')}; exit 1", 6, "not attached: more"),
    ],
)
def test_a_failed_call_is_told_with_all_that_was_said(
    kernel: FakeKernel, client: Client, body: str, code: int, said: str
) -> None:
    client.does(body)
    assert run(kernel, "usb-attach") == code
    line = kernel.said()
    assert said in line
    assert line.startswith("usb-attach: ") and line.count("\n") == 1
    assert line.strip().isprintable() and line.isascii() and len(line) < 1500
    assert not client.is_there()


ENDED = report(PEER + "the other side ended the connection [UP-615]")
LEFT = f"echo it left [UP-309] >&2; {ENDED}"


@pytest.mark.parametrize("second", ["attached", "left", "refused"])
def test_a_device_that_leaves_while_it_is_set_up_is_asked_for_once_more(
    kernel: FakeKernel, client: Client, second: str
) -> None:
    then = {"attached": f"{report(NUL)}; sleep 99", "left": LEFT, "refused": "exit 126"}
    mark = kernel.tree / "asked"
    client.does(f"[ -e {mark} ] || {{ touch {mark}; {LEFT}; exit 6; }}; {then[second]}")
    code = run(kernel, "usb-attach")
    assert len(kernel.calls(CLIENT)) == 2
    assert code == (ExitCode.OK if second == "attached" else ExitCode.PEER)
    assert kernel.said().count("\n") == (second != "attached")
    if second == "attached":
        os.kill(client.pid(), signal.SIGKILL)
        os.waitpid(client.pid(), 0)


@pytest.mark.parametrize(
    "local",
    [
        "libvchan: error: cannot bind [UP-301]",
        "sudo: unable to resolve host work",
        "usb-repair: x [UP-714]",
        "/usr/lib/qubes/usb-import: 6: python3: not found",
        "a program that nobody has thought of",
    ],
)
def test_what_this_qube_says_is_never_called_the_others(
    kernel: FakeKernel, client: Client, local: str
) -> None:
    client.does(f"echo '{local}' >&2; exit 6")
    assert run(kernel, "usb-attach") == ExitCode.PEER
    assert f"not attached: said on the way: {local}" in kernel.said()
    assert "sys-usb says" not in kernel.said()


def test_a_device_that_was_detached_there_is_not_asked_for_again(
    kernel: FakeKernel, client: Client
) -> None:
    client.does(f"{ENDED}; exit 6")
    assert run(kernel, "usb-attach") == ExitCode.PEER
    assert len(kernel.calls(CLIENT)) == 1


def test_a_call_that_hangs_is_ended_at_the_deadline(kernel: FakeKernel, client: Client) -> None:
    kernel.haste = 50
    client.does("exec sleep 99")
    assert run(kernel, "usb-attach") == ExitCode.PEER
    wait_for(lambda: not client.is_there(), "the end of the call")
    assert "2-1 of sys-usb is not attached: " in kernel.said()
    assert "in time" in kernel.said()


@pytest.mark.parametrize("early", ["", report(PEER + "failed")])
def test_a_call_that_never_stops_talking_is_ended_at_the_deadline(
    kernel: FakeKernel, client: Client, early: str
) -> None:
    kernel.haste = 100
    client.does(f"{early}\nwhile :; do echo noise >&2; done")
    assert run(kernel, "usb-attach") == ExitCode.PEER
    wait_for(lambda: not client.is_there(), "the end of the call")
    assert "said on the way: noise noise noise" in kernel.said()


def test_the_importer_is_the_one_to_tell_also_after_all_its_deadlines() -> None:
    """Those of one attach, in their order."""
    deadlines = (
        endings.NEWS_SECONDS,
        imports.REMOVAL_SECONDS,  # Of one that is ending,
        imports.REMOVAL_SECONDS,  # or what it left.
        usb_import.LINE_SECONDS,
        vhci.READY_SECONDS,
    )
    assert usb_import.ATTACH_SECONDS - sum(deadlines) >= enumeration.ENUMERATE_SECONDS
    end = usb_import.ATTACH_SECONDS + enumeration.SETTLE_SECONDS + imports.REMOVAL_SECONDS
    assert end < usb_attach.ATTACH_SECONDS


def test_a_stop_signal_ends_the_call(kernel: FakeKernel, client: Client) -> None:
    client.does("exec sleep 99")
    with program(kernel, "usb-attach") as attach:
        wait_for(client.is_there, "the call")
        os.kill(attach.pid, signal.SIGTERM)
        assert attach.code() == ExitCode.STOPPED
    assert not client.is_there()
    assert "stopped by a signal before it was done; try again [UP-801]\n" in kernel.said()


@pytest.mark.parametrize(
    ("request_line", "said"),
    [
        (b"", "has to be 'BACKEND DEVICE'"),
        (b"\n", "has to be 'BACKEND DEVICE'"),
        (b"2-1\n", "has to be 'BACKEND DEVICE'"),
        (b"sys-usb 2-1 2-2\n", "has to be 'BACKEND DEVICE'"),
        (b"../x 2-1\n", "'../x' is not the name of a qube"),
        (b"sys-usb ../2-1\n", "'../2-1' names no USB device"),
        (b"sys-usb 2-1;reboot\n", "names no USB device"),
        (b"sys-usb 2-1:1.0\n", "is one interface of a device"),
        (b"--help 2-1\n", "is not the name of a qube"),
        (b"sys-usb 2-\xd9\xa1\n", "not ASCII"),
        (b"x" * 300 + b" 2-1\n", "too long"),
    ],
)
def test_a_bad_request_calls_nobody(
    kernel: FakeKernel, peer: socket.socket, request_line: bytes, said: str
) -> None:
    kernel.command(CLIENT)
    peer.sendall(request_line)
    peer.close()
    assert run(kernel, "usb-attach") == ExitCode.REQUEST
    assert said in kernel.said() and kernel.said().count("\n") == 1
    assert (kernel.calls(CLIENT), kernel.locks()) == ([], [])


@pytest.mark.parametrize("lack", ["root", "qrexec", "driver"])
def test_what_is_missing_is_told(kernel: FakeKernel, client: Client, lack: str) -> None:
    if lack == "root":
        kernel.privileged = False
    if lack == "driver":
        kernel.unload("vhci-hcd")
        kernel.command("modprobe", "exit 1")
    assert run(kernel, "usb-attach") == ExitCode.SYSTEM
    assert {
        "root": "this needs root",
        "qrexec": "the command qrexec-client-vm is not installed",
        "driver": "the kernel module vhci-hcd cannot be loaded (exit code 1)",
    }[lack] in kernel.said()
    assert kernel.locks() == []


def test_the_driver_is_loaded_when_it_is_missing(kernel: FakeKernel, client: Client) -> None:
    kernel.unload("vhci-hcd")
    client.does("exit 126")
    assert run(kernel, "usb-attach") == ExitCode.PEER
    assert kernel.calls("modprobe") == [["vhci-hcd"]]


def test_nothing_of_the_call_is_left_open(
    kernel: FakeKernel, listening: Client, peer: socket.socket
) -> None:
    listening.does("exit 126")
    peer.sendall(ANNOUNCEMENT)
    run(kernel, "usb-attach")
    before = os.listdir("/proc/self/fd")
    peer.sendall(REQUEST + ANNOUNCEMENT)
    run(kernel, "usb-attach")
    assert os.listdir("/proc/self/fd") == before
