# SPDX-License-Identifier: GPL-2.0-or-later
"""One end of a qrexec connection: the sockets of a local process, and the link to the agent.

The rules are those of libqrexec's `process_io.c`. The underscored modules are the C halves of
`socket` and `signal`: the full ones cost a tenth of a second each in an emulated guest.
"""

import _signal  # type: ignore[import-not-found]  # typeshed knows `signal` alone
import _socket
import os
import select

from . import wire

ENOTCONN = 107  # <asm-generic/errno.h>


class Signals:
    """SIGUSR1 and SIGCHLD as a file descriptor to poll; to be made before any child."""

    def __init__(self) -> None:
        self.single_socket = False
        self.fd, tell = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(tell, False)
        _signal.set_wakeup_fd(tell)
        _signal.signal(_signal.SIGUSR1, self._usr1)
        _signal.signal(_signal.SIGCHLD, lambda *_: None)

    def _usr1(self, *_: object) -> None:
        self.single_socket = True

    def clear(self) -> None:
        """Empty the pipe, so that the next signal wakes `poll` again."""
        try:
            os.read(self.fd, 4096)
        except BlockingIOError:
            pass

    @staticmethod
    def reset() -> None:
        """In a forked child: what a program expects of its signals."""
        _signal.set_wakeup_fd(-1)
        for number in (_signal.SIGUSR1, _signal.SIGCHLD, _signal.SIGPIPE):
            _signal.signal(number, _signal.SIG_DFL)


def exit_status(status: int) -> int:
    """A wait status as a shell's exit code."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


class Relay:
    """Carries data until the connection has ended.

    `stdin`, `stdout` and `stderr` are this side's ends, -1 for none; `pid` is the local process,
    0 for none. The side of the service is the one with a stderr; `log` gets a copy of that.
    """

    def __init__(
        self,
        link: _socket.socket,
        signals: Signals,
        fds: "tuple[int, int, int]",
        pid: int,
        log: "int | None" = None,
    ) -> None:
        self._link, self._signals, self._pid, self._log = link, signals, pid, log
        self._sink, self._source, self._errors = fds
        self._stdin = self._sink  # what single-socket mode reads from, even after its EOF
        self._service = self._errors >= 0
        self._single = False
        self._open = True
        self._frames: list[bytes] = []
        self._pending = b""
        self._credit, self._owed = wire.WINDOW, 0
        self.local: int | None = None if pid else 0
        self.remote: int | None = None
        for fd in fds:
            if fd >= 0:
                os.set_blocking(fd, False)

    def run(self) -> None:
        """Return when all is closed and the local process has ended."""
        while not self._ended():
            if self._signals.single_socket and not self._single:
                self._switch()
            self._turn()
        self._close_sink()
        self._close_source()
        self._close_errors()

    def kill_group(self) -> None:
        """Kill the local process, which leads a group, and all of that group."""
        os.killpg(self._pid, _signal.SIGKILL)

    def wait(self) -> int:
        """The local process's exit code, after it has ended."""
        if self.local is None:
            self.local = exit_status(os.waitpid(self._pid, 0)[1])
        return self.local

    def _ended(self) -> bool:
        if not self._open and not self._frames and not self._pending:
            return True
        if max(self._sink, self._source, self._errors) >= 0 or self.local is None:
            return False
        if self._service:
            self._send(wire.EXIT, wire.number(self.local))
        return self._service or self.remote is not None

    def _switch(self) -> None:
        self._close_source()
        self._source = self._stdin
        self._single = True

    def _turn(self) -> None:
        events = dict(self._poll())
        self._signals.clear()
        if self.local is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self.local = exit_status(status)
                self._close_sink()
        if self._sink >= 0 and events.get(self._sink, 0) & (select.POLLHUP | select.POLLERR):
            self._close_sink()
        if self._link.fileno() in events:
            self._receive()
        self._deliver()
        if self._source >= 0 and self._source in events:
            kind = wire.STDOUT if self._service else wire.STDIN
            if not self._take(self._source, kind):
                self._close_source()
        if (
            self._errors >= 0
            and self._errors in events
            and not self._take(self._errors, wire.STDERR)
        ):
            self._close_errors()

    def _poll(self) -> "list[tuple[int, int]]":
        masks = {self._signals.fd: select.POLLIN}
        if self._open:
            masks[self._link.fileno()] = select.POLLIN
        if self._sink >= 0:
            masks[self._sink] = select.POLLOUT if self._pending else 0
        for fd in (self._source, self._errors):
            if fd >= 0 and self._credit > 0:
                masks[fd] = masks.get(fd, 0) | select.POLLIN
        poll = select.poll()
        for fd, mask in masks.items():
            poll.register(fd, mask)
        return poll.poll()

    def _receive(self) -> None:
        try:
            frame = self._link.recv(wire.CHUNK + 1)
        except OSError:
            return  # a reset is reported once, before what is still queued
        if not frame:
            self._open = False
        elif frame[0] == wire.CREDIT:
            self._credit += wire.value(frame[1:])
        else:
            self._frames.append(frame)

    def _deliver(self) -> None:
        """Hand on what was received, in its order, as far as the local process takes it."""
        while self._pending or self._frames:
            if not self._pending:
                self._handle(self._frames.pop(0))
                continue
            try:
                count = (
                    len(self._pending) if self._sink < 0 else os.write(self._sink, self._pending)
                )
            except BlockingIOError:
                return
            except OSError:
                self._close_sink()
                continue
            self._pending = self._pending[count:]
            self._repay(count)

    def _handle(self, frame: bytes) -> None:
        kind, payload = frame[0], frame[1:]
        if kind == wire.EXIT:
            self.remote = wire.value(payload)
            if self._source >= 0:
                self._send(wire.STDOUT if self._service else wire.STDIN)
            self._close_source()
            self._close_errors()
        elif kind == wire.STDERR:
            self._write_error(2, payload)
            self._repay(len(payload))
        elif payload:
            self._pending = payload
        else:
            self._close_sink()

    @staticmethod
    def _write_error(fd: int, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(fd, data) :]
        except OSError:
            pass  # nobody reads it: no reason to end the connection

    def _repay(self, count: int) -> None:
        self._owed += count
        if self._owed >= wire.WINDOW // 4:
            self._send(wire.CREDIT, wire.number(self._owed))
            self._owed = 0

    def _take(self, fd: int, kind: int) -> bool:
        """Send on what can be read; False at the end of file, which is sent too."""
        try:
            data = os.read(fd, min(wire.CHUNK, self._credit)) if self._credit > 0 else None
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        if data is None:
            return True
        self._credit -= len(data)
        self._send(kind, data)
        if kind == wire.STDERR and self._log is not None:
            self._write_error(self._log, data)
        return bool(data)

    def _send(self, kind: int, payload: bytes = b"") -> None:
        try:
            self._link.send(bytes((kind,)) + payload)
        except OSError:
            pass  # closed by the agent; there may be frames to read before the end of file

    def _shut(self, fd: int, how: int) -> None:
        """End one direction of a socket; close what is not one, or is not ours alone."""
        if fd < 0:
            return
        try:
            if fd > 2:
                end = _socket.socket(fileno=fd)
                try:
                    end.shutdown(how)
                finally:
                    end.detach()
                return
        except OSError as error:
            if error.errno == ENOTCONN:  # the other end has gone already
                return
        os.set_blocking(fd, True)  # an inherited one: its other users do not expect it to change
        os.close(fd)

    def _close_sink(self) -> None:
        self._shut(self._sink, _socket.SHUT_WR)
        self._sink = -1

    def _close_source(self) -> None:
        self._shut(self._source, _socket.SHUT_RD)
        self._source = -1

    def _close_errors(self) -> None:
        if self._errors >= 0:
            os.close(self._errors)
        self._errors = -1
