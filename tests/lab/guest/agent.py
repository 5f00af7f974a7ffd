# SPDX-License-Identifier: GPL-2.0-or-later
"""The agent: process 1 of a guest. Carries frames between the port and its connections."""

import ctypes
import os
import select
import signal
import socket
import sys
from collections import deque

from . import wire
from .client import AGENT
from .service import serve

PORT = "/dev/virtio-ports/lab"
DATABASE = "/run/lab-qubesdb"
IN_DELETE, IN_MOVED_TO = 0x200, 0x80  # <sys/inotify.h>
INOTIFY_HEADER = 16


class Connection:
    """A connection's process, seen from the agent: its socket, and what it has not yet read."""

    def __init__(self, link: socket.socket, number: int) -> None:
        self.link, self.number = link, number
        self.queue: deque[bytes] = deque()
        self.closing = False  # closed by the other end: to be closed when the queue is empty
        link.setblocking(False)

    def flush(self) -> bool:
        """Write what can be written; False when the connection is to be closed."""
        try:
            while self.queue:
                self.link.send(self.queue[0])
                self.queue.popleft()
        except BlockingIOError:
            return True
        except OSError:
            self.queue.clear()  # it has gone; what it sent before is still to be read
        return not self.closing


class Agent:
    """Numbers of connections that this guest began are odd; the host's are even."""

    def __init__(self, port: int) -> None:
        self.port = port
        os.set_blocking(port, False)
        self.parser = wire.Parser()
        self.out = bytearray()
        self.connections: dict[int, Connection] = {}
        self.next = 1
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(AGENT)
        os.chmod(AGENT, 0o666)
        self.listener.listen(64)
        self.changes = watch(DATABASE)
        self.poll = select.poll()
        for fd in (self.port, self.listener.fileno(), self.changes):
            self.poll.register(fd, select.POLLIN)

    def run(self) -> None:
        """For ever."""
        self.tell(0, wire.READY)
        while True:
            self.poll.modify(self.port, select.POLLIN | (select.POLLOUT if self.out else 0))
            for fd, mask in self.poll.poll():
                if fd == self.port:
                    self.port_event(mask)
                elif fd == self.listener.fileno():
                    self.accept()
                elif fd == self.changes:
                    self.changed()
                else:
                    self.connection_event(fd, mask)

    def tell(self, channel: int, kind: int, payload: bytes = b"") -> None:
        """Queue a frame for the host."""
        self.out += wire.pack(channel, kind, payload)

    def port_event(self, mask: int) -> None:
        """Read frames from, and write frames to, the host."""
        if mask & select.POLLIN:
            data = os.read(self.port, wire.CHUNK)
            if not data:
                sys.exit("the host has gone")
            for frame in self.parser.feed(data):
                self.frame(*frame)
        if mask & select.POLLOUT and self.out:
            try:
                del self.out[: os.write(self.port, self.out[:32768])]
            except BlockingIOError:
                pass

    def frame(self, channel: int, kind: int, payload: bytes) -> None:
        """One frame from the host."""
        if kind == wire.OPEN:
            self.open(channel, payload)
            return
        connection = self.connections.get(channel)
        if connection is None:
            return
        if kind == wire.CLOSE:
            connection.closing = True
        else:
            connection.queue.append(bytes((kind,)) + payload)
        self.flush(connection)

    def open(self, channel: int, payload: bytes) -> None:
        """Fork the process of a connection that the host began."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            code = wire.EXIT_PROBLEM
            try:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                keep = theirs.fileno()
                os.closerange(3, keep)
                os.closerange(keep + 1, 1024)
                code = serve(theirs, payload)
            except Exception as error:
                os.write(2, f"lab: connection failed: {error!r}\n".encode())
            finally:
                os._exit(code)
        theirs.close()
        self.add(ours, channel)

    def accept(self) -> None:
        """A qrexec-client-vm."""
        link, _ = self.listener.accept()
        self.add(link, self.next)
        self.next += 2

    def add(self, link: socket.socket, channel: int) -> None:
        """Know a connection from now on."""
        self.connections[channel] = Connection(link, channel)
        self.poll.register(link.fileno(), select.POLLIN)

    def flush(self, connection: Connection) -> None:
        """Hand on what is queued for a connection, and forget it when it is over."""
        if not connection.flush():
            self.forget(connection)
            return
        mask = select.POLLIN | (select.POLLOUT if connection.queue else 0)
        self.poll.modify(connection.link.fileno(), mask)

    def forget(self, connection: Connection) -> None:
        """Close it and tell the host."""
        self.poll.unregister(connection.link.fileno())
        connection.link.close()
        del self.connections[connection.number]
        self.tell(connection.number, wire.CLOSE)

    def connection_event(self, fd: int, mask: int) -> None:
        """A connection's process sent a frame, can take more, or has gone."""
        for connection in self.connections.values():
            if connection.link.fileno() == fd:
                break
        else:
            return
        try:
            frame = connection.link.recv(wire.CHUNK + 1)
        except OSError:
            frame = None  # nothing there, or a reset: reported once, before what is queued
        if frame == b"":
            self.forget(connection)
            return
        if frame:
            self.tell(connection.number, frame[0], frame[1:])
        self.flush(connection)

    def changed(self) -> None:
        """Tell the host which keys of the database were written or removed."""
        events = os.read(self.changes, 65536)
        while events:
            end = INOTIFY_HEADER + int.from_bytes(events[12:INOTIFY_HEADER], sys.byteorder)
            name = events[INOTIFY_HEADER:end].rstrip(b"\0")
            self.tell(0, wire.CHANGED, name.replace(b"%", b"/"))
            events = events[end:]


def watch(folder: str) -> int:
    """An inotify descriptor for files that are moved into or deleted from a folder."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = int(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    if fd < 0 or libc.inotify_add_watch(fd, folder.encode(), IN_DELETE | IN_MOVED_TO) < 0:
        raise OSError(ctypes.get_errno(), "inotify")
    return fd


def reap(*_: object) -> None:
    """Process 1 inherits every orphan."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def main(port: int | None = None) -> None:
    """Process 1 must not end: the kernel's panic then says so on the console.

    `port` is an open FD in place of the guest's port.
    """
    signal.signal(signal.SIGCHLD, reap)
    Agent(os.open(PORT, os.O_RDWR) if port is None else port).run()
