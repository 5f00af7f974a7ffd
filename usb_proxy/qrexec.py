# SPDX-License-Identifier: GPL-2.0-or-later
"""The link between two qubes: what qrexec gives a service, and how to call one."""

from __future__ import annotations

import _socket
import errno
import posix as os
import select

from usb_proxy.errors import PeerError, RequestError, StoppedError, SystemLackError, reason
from usb_proxy.handshake import LINE_LIMIT
from usb_proxy.host import signal
from usb_proxy.idents import DomainName

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usb_proxy.host import Host

SERVICE = "qubes.USB"
CLIENT = "qrexec-client-vm"

REFUSED = 126
"""qrexec-client-vm's exit code when policy says no (agent/qrexec-client-vm.c)."""

REQUEST_SECONDS = 10.0
REQUEST_LIMIT = 200
"""Bytes: two names of 31 characters and what is between, with room for an error to be shown."""

_ANCESTORS = 8
"""How far up the agent may be: shell, launcher, sudo and its monitor are between."""


def require_root(host: Host) -> None:
    """SystemLackError unless this process is root: only root may write the kernel's files."""
    if not host.is_root():
        raise SystemLackError("UP-707")


def remote_domain(host: Host) -> DomainName:
    """The qube at the other end of this service call; RequestError outside of one."""
    untrusted_name = host.environment.get("QREXEC_REMOTE_DOMAIN")
    if untrusted_name is None:
        raise RequestError("UP-209")
    return DomainName.parse(untrusted_name)


def read_request(host: Host) -> list[str]:
    """The untrusted fields of the line that dom0 sends to a service; else RequestError.

    It ends with its line or with the input.
    """
    untrusted_request = b""
    deadline = host.now() + REQUEST_SECONDS
    while b"\n" not in untrusted_request:
        if not host.wait({host.link: select.POLLIN}, deadline):
            raise RequestError("UP-210", seconds=REQUEST_SECONDS)
        try:
            untrusted_part = os.read(host.link, REQUEST_LIMIT)
        except OSError as error:
            raise RequestError("UP-211", reason=reason(error)) from error
        untrusted_request += untrusted_part
        if len(untrusted_request) > REQUEST_LIMIT:
            raise RequestError("UP-212")
        if not untrusted_part:
            break
    untrusted_line = untrusted_request.partition(b"\n")[0]
    if not untrusted_line.isascii():
        raise RequestError("UP-213")
    return untrusted_line.decode("ascii").split()


class Link:
    """The stream socket that qrexec calls stdin, kept besides the kernel's use of it.

    A duplicate neither delays nor prevents the end of the connection, and shows it.
    `is_handed_over` is set by whoever gives the socket to the kernel; `sent_at` is when a line
    was sent.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self.is_handed_over = False
        self.sent_at = float("-inf")
        try:
            self._socket = _socket.socket(fileno=os.dup(host.link))
            is_stream = self._socket.type == _socket.SOCK_STREAM
        except OSError:
            is_stream = False
        if not is_stream:
            raise RequestError("UP-214")

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
        os.kill(pid, signal.SIGUSR1)

    def _is_agent(self, pid: int) -> bool:
        """Whether this is an ancestor that handles SIGUSR1, or ignores it once it has come.

        qrexec prepares for it before it starts a program (agent/qrexec-agent-data.c).
        """
        ancestor = os.getppid()
        for _ in range(_ANCESTORS):
            if ancestor <= 1:
                break
            try:
                status = self._host.read(f"/proc/{ancestor}/status")
            except OSError as error:
                raise SystemLackError("UP-709") from error
            fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            if ancestor == pid:
                expected = int(fields["SigCgt"], 16) | int(fields["SigIgn"], 16)
                return bool(expected >> (signal.SIGUSR1 - 1) & 1)
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
        untrusted_line = b""
        events = {self.fileno(): select.POLLIN | select.POLLRDHUP}
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

    def await_end(self, watch: int | None = None) -> bool:
        """Sleep until the connection ends or a stop signal asks for that; traffic wakes nobody.

        False when `watch` got readable instead.
        """
        events = {self.fileno(): select.POLLRDHUP}
        if watch is not None:
            events[watch] = select.POLLIN
        try:
            return self.fileno() in self._host.wait(events, None)
        except StoppedError:
            return True

    def end(self, deadline: float) -> None:
        """Make the kernel's driver end the session, and wait until it has begun to.

        Only the receiving half is shut down, as if the other side had closed. The driver then
        shuts down the rest, which nobody else does while the agent lives.
        """
        try:
            self._socket.shutdown(_socket.SHUT_RD)
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise
        # POLLHUP, which comes unasked, needs both halves.
        self._host.wait({self.fileno(): 0}, deadline, stoppable=False)
