# SPDX-License-Identifier: GPL-2.0-or-later
"""The link between two qubes: what qrexec gives a service, and how to call one."""

from __future__ import annotations

import errno

from usb_proxy.errors import PeerError, RequestError, StoppedError, SystemLackError, reason
from usb_proxy.host import GLANCE_SECONDS, POLLIN, POLLRDHUP, SIGUSR1
from usb_proxy.idents import DomainName

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usb_proxy.host import Host

SERVICE = "qubes.USB"
CLIENT = "qrexec-client-vm"

PROBLEM, REFUSED, NOT_FOUND = 125, 126, 127
"""qrexec-client-vm's exit codes (libqrexec/qrexec.h): the service cannot be run there; policy says
no, or the qube does not start; there is no such service. The far side's code counts first."""

REQUEST_SECONDS = 10.0
REQUEST_LIMIT = 200
"""Bytes: two names of 31 characters and what is between, with room for an error to be shown."""

ANNOUNCEMENT_LIMIT = 300
"""Bytes of a second line: a device with 32 interfaces has 233."""

SECOND_LINE_SECONDS = 2.0
"""How long after the first line the second one may come."""

NORMAL_PRIORITY = "/run/qubes-service/usb-proxy-normal-priority"
PRIORITY = -5
"""What a busy qube gives the process that carries the data, as nice(2) counts; see
docs/performance.md for what was measured. It weighs as three ordinary processes do."""

SHUT_RD = 0
"""shutdown(2), linux/net.h."""

_ANCESTORS = 8
"""How far up the agent may be: shell, launcher, sudo and its monitor are between."""


def require_root(host: Host, service: str) -> None:
    """SystemLackError unless this process is root, as the `service` that it runs for should be."""
    if not host.is_root():
        raise SystemLackError("UP-707", service=service)


def remote_domain(host: Host) -> DomainName:
    """The qube at the other end of this service call; RequestError outside of one."""
    untrusted_name = host.environment.get("QREXEC_REMOTE_DOMAIN")
    if untrusted_name is None:
        raise RequestError("UP-209")
    return DomainName(untrusted_name)


def read_lines(host: Host, more: bool = False) -> tuple[str, str]:
    """The untrusted first line of what dom0 sends, and with `more` the second, if there is one.

    RequestError if it does not come, or is no line. dom0 sends both at once and ends; who writes
    one line by hand may keep the input open.
    """
    untrusted_request = b""
    deadline = host.now() + REQUEST_SECONDS
    while untrusted_request.count(b"\n") <= more:
        if not host.wait({host.link: POLLIN}, deadline):
            if b"\n" in untrusted_request:
                break
            raise RequestError("UP-210", seconds=REQUEST_SECONDS)
        try:
            untrusted_part = host.read_open(host.link, REQUEST_LIMIT + ANNOUNCEMENT_LIMIT)
        except OSError as error:
            raise RequestError("UP-211", reason=reason(error)) from error
        if not untrusted_part:
            break
        untrusted_request += untrusted_part
        if b"\n" in untrusted_part:
            deadline = min(deadline, host.now() + SECOND_LINE_SECONDS)
        untrusted_line, _, untrusted_rest = untrusted_request.partition(b"\n")
        if len(untrusted_line) > REQUEST_LIMIT or (
            more and len(untrusted_rest.partition(b"\n")[0]) > ANNOUNCEMENT_LIMIT
        ):
            raise RequestError("UP-212")
    untrusted_lines = [*untrusted_request.split(b"\n"), b""]
    if not untrusted_lines[0].isascii():
        raise RequestError("UP-213")
    return untrusted_lines[0].decode("ascii"), untrusted_lines[1].decode("ascii", "replace")


class Link:
    """The stream socket that qrexec calls stdin, kept besides the kernel's use of it.

    A duplicate neither delays nor prevents the end of the connection, and shows it.
    `is_handed_over` is set by whoever gives the socket to the kernel; `sent_at` is when a line
    was sent.
    """

    def __init__(self, host: Host) -> None:
        from usb_proxy import sockets  # noqa: PLC0415 (usb-attach has none, and they cost a lot)

        link = sockets.duplicate(host.link)
        if link is None:
            raise RequestError("UP-214")
        self._socket = link
        self._host = host
        self.is_handed_over = False
        self.sent_at = float("-inf")
        self._agent_is_roots = False

    def fileno(self) -> int:
        """The duplicate."""
        return self._socket.fileno()

    def use_both_ways(self) -> None:
        """Ask the agent to use this one socket for both directions (qrexec: SIGUSR1).

        RequestError when QREXEC_AGENT_PID is no ancestor of this process, or one that does not
        expect the signal and would die of it: root's signal goes to nobody else. What was written
        before is kept.
        """
        untrusted_pid = self._host.environment.get("QREXEC_AGENT_PID", "")
        if not (untrusted_pid.isascii() and untrusted_pid.isdigit() and len(untrusted_pid) < 10):
            raise RequestError("UP-215")
        pid = int(untrusted_pid)
        if not self._is_agent(pid):
            raise RequestError("UP-216", pid=pid)
        self._host.signal(pid, SIGUSR1)
        if self._agent_is_roots and not self._host.exists(NORMAL_PRIORITY):
            _prefer(self._host, pid)

    def _is_agent(self, pid: int) -> bool:
        """Whether this is an ancestor that handles SIGUSR1, or ignores it once it has come.

        qrexec prepares for it before it starts a program (agent/qrexec-agent-data.c).
        """
        ancestor = self._host.parent()
        for _ in range(_ANCESTORS):
            if ancestor <= 1:
                break
            try:
                status = self._host.read(f"/proc/{ancestor}/status")
            except OSError as error:
                raise SystemLackError("UP-709") from error
            fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            if ancestor == pid:
                self._agent_is_roots = set(fields.get("Uid", "").split()) == {"0"}
                expected = int(fields["SigCgt"], 16) | int(fields["SigIgn"], 16)
                return bool(expected >> (SIGUSR1 - 1) & 1)
            ancestor = int(fields["PPid"])
        return False

    def send(self, line: bytes) -> None:
        """Send a line to the other side; PeerError if it has gone."""
        try:
            self._socket.sendall(line)
            self.sent_at = self._host.now()
        except OSError as error:
            raise PeerError("UP-610") from error

    def read_line(self, deadline: float, watch: int | None = None) -> bytes:
        """One untrusted line with its end, and not a byte more: the rest is for the kernel.

        PeerError when the other side closes, sends too much, or nothing more until `deadline`;
        also when `watch`, the write end of a pipe, has lost its reader.
        """
        from usb_proxy.handshake import LINE_LIMIT  # noqa: PLC0415 (usb-attach reads none)

        untrusted_line = b""
        events = {self.fileno(): POLLIN | POLLRDHUP}
        if watch is not None:
            events[watch] = 0
        while not untrusted_line.endswith(b"\n"):
            ready = self._host.wait(events, deadline)
            if watch in ready:
                raise PeerError("UP-611")
            if not ready:
                said = "only part of an" if untrusted_line else "no"
                raise PeerError("UP-612", what=said)
            try:
                untrusted_byte = self._socket.recv(1)
            except ConnectionError:
                untrusted_byte = b""
            if not untrusted_byte:
                if untrusted_line:
                    raise PeerError("UP-613")
                raise PeerError("UP-614")
            untrusted_line += untrusted_byte
            if len(untrusted_line) > LINE_LIMIT:
                raise PeerError("UP-606")
        return untrusted_line

    def require(self) -> None:
        """PeerError if the connection has ended by now."""
        if self._host.has_event(self.fileno(), POLLRDHUP):
            raise PeerError("UP-615")

    def has_ended(self) -> bool:
        """Whether the connection has ended by now, or a stop signal asks for that."""
        try:
            return bool(
                self._host.wait({self.fileno(): POLLRDHUP}, self._host.now() + GLANCE_SECONDS)
            )
        except StoppedError:
            return True

    def await_end(self, watch: int, deadline: float | None = None) -> bool:
        """Sleep until the connection ends or a stop signal asks for that; traffic wakes nobody.

        False when `watch` got readable instead, or the deadline has passed.
        """
        events = {self.fileno(): POLLRDHUP, watch: POLLIN}
        try:
            return self.fileno() in self._host.wait(events, deadline)
        except StoppedError:
            return True

    def end(self, deadline: float) -> None:
        """Make the kernel's driver end the session, and wait until it has begun to.

        Only the receiving half is shut down, as if the other side had closed. The driver then
        shuts down the rest, which nobody else does while the agent lives.
        """
        try:
            self._socket.shutdown(SHUT_RD)
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise
        # POLLHUP, which comes unasked, needs both halves.
        self._host.wait({self.fileno(): 0}, deadline, stoppable=False)


def _prefer(host: Host, agent: int) -> None:
    """Give qrexec's process of this connection, which carries all data, a better priority.

    It has started its program already, and starts nothing more: nothing inherits it
    (agent/qrexec-agent-data.c). Whoever gave it another one is left alone.
    """
    try:
        host.prefer(agent, PRIORITY)
    except OSError:
        pass  # It has gone, which others notice, or may not be preferred: all works without.
