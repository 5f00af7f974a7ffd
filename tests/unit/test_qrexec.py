# SPDX-License-Identifier: GPL-2.0-or-later
"""What comes from the other side of a service call."""

from __future__ import annotations

import os
import signal
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from usb_proxy import qrexec
from usb_proxy.errors import ExitCode, PeerError, RequestError, SystemLackError, UsbProxyError
from usb_proxy.handshake import LINE_LIMIT
from usb_proxy.qrexec import Link, read_lines, remote_domain, require_root

from .fake_machine import shut_down
from .processes import Child, run, wait_for

if TYPE_CHECKING:
    from .fake_kernel import FakeKernel


@pytest.fixture
def link(kernel: FakeKernel, peer: socket.socket) -> Link:
    """The connection, whose far end is `peer`."""
    return Link(kernel)


def trickle(peer: socket.socket, data: bytes) -> None:
    """Send byte after byte, each once the one before was taken."""

    def send() -> None:
        try:
            for byte in data:
                peer.send(bytes([byte]))
        except OSError:
            pass

    threading.Thread(target=send, daemon=True).start()


def test_root_is_asked_for(kernel: FakeKernel) -> None:
    require_root(kernel, "qubes.USB")
    kernel.privileged = False
    with pytest.raises(SystemLackError, match=r"rpc-config/qubes\.USB has .* force-user='root'"):
        require_root(kernel, "qubes.USB")


@pytest.mark.parametrize(
    ("program", "argument", "command"),
    [
        ("usb-reset", "2-1", "only root may reset USB device 2-1"),
        ("usb-repair", "", "run: sudo qubes-usb-proxy repair"),
        ("usb-detach-all", "", "run: sudo /usr/lib/qubes/usb-detach-all"),
    ],
)
def test_what_was_started_by_hand_is_no_service(
    kernel: FakeKernel, program: str, argument: str, command: str
) -> None:
    kernel.plug("2-1")
    kernel.privileged = False
    assert run(kernel, program, *argument.split()) == ExitCode.SYSTEM
    assert command in kernel.said()
    assert "rpc-config" not in kernel.said()


def test_the_remote_domain_is_the_environments(kernel: FakeKernel) -> None:
    with pytest.raises(RequestError, match="QREXEC_REMOTE_DOMAIN is not set"):
        remote_domain(kernel)
    kernel.environment = {"QREXEC_REMOTE_DOMAIN": "win-dm"}
    assert remote_domain(kernel).owner == "win"
    for name in ("", "../x", "a b"):
        kernel.environment = {"QREXEC_REMOTE_DOMAIN": name}
        with pytest.raises(RequestError):
            remote_domain(kernel)


# The request of dom0.


@pytest.mark.parametrize(
    ("sent", "fields"),
    [
        (b"", []),
        (b"\n", []),
        (b"sys-usb 2-1\n", ["sys-usb", "2-1"]),
        (b" a\t b \n", ["a", "b"]),
        (b"2-1", ["2-1"]),
        (b"a\nb c\n", ["a"]),
        (b"x" * 199 + b"\n", ["x" * 199]),
    ],
)
def test_a_request_is_one_line_of_fields(
    kernel: FakeKernel, peer: socket.socket, sent: bytes, fields: list[str]
) -> None:
    peer.sendall(sent)
    peer.shutdown(socket.SHUT_WR)
    assert read_lines(kernel)[0].split() == fields


def test_a_request_may_come_in_pieces_and_is_not_waited_for_beyond_its_line(
    kernel: FakeKernel, peer: socket.socket
) -> None:
    trickle(peer, b"sys-usb 2-1\n")
    assert read_lines(kernel)[0].split() == ["sys-usb", "2-1"]


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"x" * 201, "too long"),
        (b"x" * 5000 + b"\n", "too long"),
        (b"\xc3\xa9 2-1\n", "not ASCII"),
        (b"sys-usb 2-1", "within 10 s"),
    ],
)
def test_a_bad_request_is_refused(
    kernel: FakeKernel, peer: socket.socket, sent: bytes, said: str
) -> None:
    kernel.haste = 100 if "within" in said else 1
    trickle(peer, sent)
    with pytest.raises(RequestError, match=said):
        read_lines(kernel)


# The line of the backend.


@pytest.mark.parametrize("slow", [False, True])
def test_a_line_is_taken_and_not_a_byte_more(
    kernel: FakeKernel, peer: socket.socket, link: Link, slow: bool
) -> None:
    line = b"131074 480\n"
    if slow:
        trickle(peer, line)
    else:
        peer.sendall(line + b"\0\1for the kernel\n")
    assert link.read_line(kernel.now() + 10) == line
    assert slow or os.read(kernel.link, 100) == b"\0\1for the kernel\n"


@pytest.mark.parametrize("sent", [b"", b"131074 48"])
@pytest.mark.parametrize("closed", [False, True])
def test_no_line_and_half_a_line_are_told_apart(
    kernel: FakeKernel, peer: socket.socket, link: Link, sent: bytes, closed: bool
) -> None:
    said = {
        (False, b""): "sent no answer in time",
        (False, b"131074 48"): "sent only part of an answer in time",
        (True, b""): "closed the connection without an answer",
        (True, b"131074 48"): "closed the connection in the middle of its answer",
    }[closed, sent]
    peer.sendall(sent)
    if closed:
        peer.close()
    with pytest.raises(PeerError, match=said):
        link.read_line(kernel.now() + 0.05)


def test_a_line_without_end_is_cut(kernel: FakeKernel, peer: socket.socket, link: Link) -> None:
    peer.sendall(b"9" * (LINE_LIMIT + 20))
    with pytest.raises(PeerError, match="too long"):
        link.read_line(kernel.now() + 10)
    assert len(os.read(kernel.link, 1000)) == 19


def test_a_longest_line_is_taken(kernel: FakeKernel, peer: socket.socket, link: Link) -> None:
    line = b"9" * (LINE_LIMIT - 1) + b"\n"
    peer.sendall(line)
    assert link.read_line(kernel.now() + 10) == line


def test_nobody_waits_for_a_line_that_nobody_wants(
    kernel: FakeKernel, peer: socket.socket, link: Link
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(PeerError, match="the program that asked for the device has gone"):
        link.read_line(kernel.now() + 10, writer)
    os.close(writer)


def test_sending_to_nobody_is_the_peers_failure(
    kernel: FakeKernel, peer: socket.socket, link: Link
) -> None:
    peer.close()
    with pytest.raises(PeerError, match="closed the connection"):
        link.send(b"131074 480\n")


# The socket itself.


@pytest.mark.parametrize("kind", ["pipe", "file", "datagram", "nothing"])
def test_only_a_stream_socket_is_a_link(kernel: FakeKernel, kind: str) -> None:
    near, far = socket.socketpair(type=socket.SOCK_DGRAM)
    reader, writer = os.pipe()
    kernel.link = {"pipe": reader, "file": kernel.errors, "datagram": near.fileno()}.get(kind, -1)
    with near, far, pytest.raises(RequestError, match="not a stream socket"):
        Link(kernel)
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("close", [shut_down, lambda far: far.shutdown(socket.SHUT_WR)])
def test_the_end_is_seen_and_traffic_is_not(
    kernel: FakeKernel, peer: socket.socket, link: Link, close: object
) -> None:
    peer.sendall(b"traffic")
    silent, other = socket.socketpair()
    with silent, other:
        waiter = threading.Thread(target=link.await_end, args=(silent.fileno(),), daemon=True)
        waiter.start()
        waiter.join(0.05)
        assert waiter.is_alive()
        assert callable(close)
        close(peer)
        waiter.join(10)
        assert not waiter.is_alive()


def test_what_is_watched_besides_is_told_apart_from_the_end(
    kernel: FakeKernel, peer: socket.socket, link: Link
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"something")
        assert not link.await_end(ours.fileno())
        assert not link.await_end(theirs.fileno(), kernel.now() + 0.01)
        shut_down(peer)
        assert link.await_end(ours.fileno())


def test_ending_waits_for_the_driver_to_let_go(
    kernel: FakeKernel, peer: socket.socket, link: Link
) -> None:
    """The driver sees an end of input, and shuts down the rest."""
    driver = socket.socket(fileno=os.dup(kernel.link))
    ended = threading.Thread(target=link.end, args=(kernel.now() + 100,), daemon=True)
    ended.start()
    assert driver.recv(10) == b""
    ended.join(0.05)
    assert ended.is_alive()
    shut_down(driver)
    ended.join(10)
    assert not ended.is_alive()
    link.end(kernel.now() + 100)
    driver.close()


def test_ending_gives_up_in_time(kernel: FakeKernel, peer: socket.socket, link: Link) -> None:
    """A driver that does not let go is not waited for without end, nor is the peer cut off."""
    link.end(kernel.now() + 0.02)
    link.send(b"still there\n")
    assert peer.recv(100) == b"still there\n"


# The agent.


@pytest.mark.parametrize(
    "pid",
    [None, "", "x", "-1", "0", "1", " 1", "1 ", "1.0", "9" * 9, "9" * 30, "\N{SUPERSCRIPT TWO}"],
)
def test_what_is_no_agent_gets_no_signal(
    kernel: FakeKernel, link: Link, agent: list[int], pid: str | None
) -> None:
    kernel.environment = {} if pid is None else {"QREXEC_AGENT_PID": pid}
    with pytest.raises(RequestError, match="QREXEC_AGENT_PID"):
        link.use_both_ways()
    assert not agent


@pytest.mark.parametrize("related", ["child", "itself", "parent", "grandparent"])
def test_only_an_ancestor_gets_the_signal(
    kernel: FakeKernel, link: Link, related: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the real /proc: the signal kills a process that does not expect it."""
    monkeypatch.setattr(qrexec, "_prefer", lambda *_: None)  # It may be that of all tests.
    (kernel.tree / "proc").symlink_to("/proc")
    us = os.getpid()
    signals: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: signals.append(number))

    def ask(pid: int) -> int:
        kernel.environment = {"QREXEC_AGENT_PID": str(pid)}
        try:
            link.use_both_ways()
        except UsbProxyError as error:
            return error.code
        return 0

    def body() -> int:
        if related == "itself":
            return ask(os.getpid())
        if related == "child":
            with Child(signal.pause) as other:
                return ask(other.pid)
        if related == "grandparent":
            return Child(lambda: ask(us)).code()
        return ask(us)

    try:
        with Child(body) as child:
            is_above = related.endswith("parent")
            assert child.code() == (0 if is_above else RequestError.code)
            wait_for(lambda: len(signals) == is_above, "the signal")
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("is_ignored", [False, True])
def test_an_ancestor_that_the_signal_would_kill_gets_none(
    kernel: FakeKernel, link: Link, is_ignored: bool
) -> None:
    """Such as qrexec-agent itself, or a shell of root's. An agent ignores it from the second on."""
    (kernel.tree / "proc").symlink_to("/proc")

    def ask() -> int:
        kernel.environment = {"QREXEC_AGENT_PID": str(os.getppid())}
        try:
            link.use_both_ways()
        except RequestError as error:
            return error.code
        return 0

    def body() -> int:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN if is_ignored else signal.SIG_DFL)
        return Child(ask).code()

    with Child(body) as child:
        assert child.code() == (0 if is_ignored else RequestError.code)


@pytest.mark.skipif(os.getuid() != 0, reason="root alone may prefer a process")
@pytest.mark.parametrize("case", ["roots", "a users", "turned off", "set already"])
def test_what_carries_the_data_is_preferred(kernel: FakeKernel, link: Link, case: str) -> None:
    """Of root's agents alone, and neither what they have started nor who asks."""
    (kernel.tree / "proc").symlink_to("/proc")
    if case == "turned off":
        flag = Path(f"{kernel.tree}{qrexec.NORMAL_PRIORITY}")
        flag.parent.mkdir(parents=True, exist_ok=True)
        flag.touch()

    def ask() -> int:
        kernel.environment = {"QREXEC_AGENT_PID": str(os.getppid())}
        link.use_both_ways()
        return os.getpriority(os.PRIO_PROCESS, 0)

    def body() -> int:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        os.setpriority(os.PRIO_PROCESS, 0, 0)  # whatever the tests themselves have
        if case == "a users":
            os.setresuid(65534, 0, 0)
        if case == "set already":
            os.setpriority(os.PRIO_PROCESS, 0, 3)
        with Child(signal.pause) as other:
            is_left_alone = Child(ask).code() == os.getpriority(os.PRIO_PROCESS, other.pid)
        return -os.getpriority(os.PRIO_PROCESS, 0) if is_left_alone else 99

    wanted = {"roots": -qrexec.PRIORITY, "set already": -3 % 256}.get(case, 0)
    with Child(body) as child:
        assert child.code() == wanted


def test_without_proc_nobody_gets_a_signal(kernel: FakeKernel, link: Link) -> None:
    kernel.environment = {"QREXEC_AGENT_PID": str(os.getppid() + 1)}
    if os.getppid() <= 1:
        pytest.skip("the parent of the tests is no ordinary process")
    with pytest.raises(SystemLackError, match="/proc is not mounted"):
        link.use_both_ways()
