# SPDX-License-Identifier: GPL-2.0-or-later
"""dom0's part of qrexec: calls into guests, calls between guests, and a policy."""

import contextlib
import selectors
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass

from .errors import LabError
from .guest import wire

# (source, target, full name of the service) -> the user it runs as, or None if refused
Policy = Callable[[str, str, str], str | None]


@dataclass(frozen=True)
class Completed:
    """How a command or call ended. `code` is -1 if the connection was lost first."""

    code: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """stdout without its last line end."""
        return self.stdout.decode(errors="replace").rstrip("\n")


class Call:
    """A command or a service's call from dom0."""

    def __init__(self, router: "Router", peer: "Peer", channel: int, stdin: bytes) -> None:
        self._router, self._peer, self._channel = router, peer, channel
        self._stdin: bytes | None = stdin
        self._credit = wire.WINDOW
        self._output = {wire.STDOUT: bytearray(), wire.STDERR: bytearray()}
        self._code = -1
        self._done = threading.Event()

    @property
    def finished(self) -> bool:
        """True when it has ended."""
        return self._done.is_set()

    def wait(self, timeout: float) -> Completed:
        """Its result. If it takes longer than `timeout` seconds, cancel it and raise LabError."""
        if not self._done.wait(timeout):
            self.cancel()
            so_far = self._result()
            raise LabError(
                f"no end after {timeout:.0f} s; so far: {so_far.stdout[-500:]!r}, "
                f"stderr {so_far.stderr[-500:]!r}"
            )
        return self._result()

    def cancel(self) -> None:
        """Close the connection, as if dom0's side had been killed."""
        self._router.hang_up(self._peer, self._channel)
        self._done.set()

    def wake(self) -> None:
        """Send a frame that changes nothing; the guest's processor wakes up to look at it."""
        self._router.send(self._peer, self._channel, wire.CREDIT, wire.number(0))

    def _result(self) -> Completed:
        return Completed(
            self._code, bytes(self._output[wire.STDOUT]), bytes(self._output[wire.STDERR])
        )

    def feed(self) -> None:
        """Send as much of stdin as may be on the way (called with the router's lock)."""
        while self._stdin is not None and (self._credit > 0 or not self._stdin):
            chunk = self._stdin[: min(wire.CHUNK, self._credit)]
            self._peer.send(self._channel, wire.STDIN, chunk)
            self._credit -= len(chunk)
            self._stdin = self._stdin[len(chunk) :] if chunk else None

    def frame(self, kind: int, payload: bytes) -> None:
        """One frame from the guest (called with the router's lock)."""
        if kind in self._output and payload:
            self._output[kind] += payload
            self._peer.send(self._channel, wire.CREDIT, wire.number(len(payload)))
        elif kind == wire.CREDIT:
            self._credit += wire.value(payload)
            self.feed()
        elif kind == wire.EXIT:
            self._code = wire.value(payload)
        elif kind == wire.CLOSE:
            self._done.set()


class Peer:
    """A guest, as the router sees it: its port, and where its channels lead."""

    def __init__(self, name: str, port: socket.socket) -> None:
        self.name, self.port = name, port
        self.ready = threading.Event()
        self.parser = wire.Parser()
        self.out = bytearray()
        self.routes: dict[int, Call | tuple[Peer, int]] = {}
        self._next = 0
        port.setblocking(False)

    def send(self, channel: int, kind: int, payload: bytes = b"") -> None:
        """Queue a frame."""
        self.out += wire.pack(channel, kind, payload)

    def open(self, channel: int, kind: bytes, user: str, remote: str, command: str) -> None:
        """Queue the frame that begins a connection."""
        fields = (kind, user.encode(), remote.encode(), command.encode())
        self.send(channel, wire.OPEN, b"\0".join(fields))

    def new_channel(self) -> int:
        """An even number, for a connection that the host begins."""
        self._next += 2
        return self._next


class Router:
    """A thread that moves frames. `changed(guest, key)` is called in it."""

    def __init__(self, policy: Policy, changed: Callable[[str, str], None]) -> None:
        self._policy, self._changed = policy, changed
        self._lock = threading.RLock()
        self._peers: dict[str, Peer] = {}
        self._selector = selectors.DefaultSelector()
        self._awake, self._wake = socket.socketpair()
        self._awake.setblocking(False)
        self._selector.register(self._awake, selectors.EVENT_READ)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="lab-router", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; every call that is under way ends as lost."""
        with self._lock:
            for peer in list(self._peers.values()):
                self._lose(peer)
            self._stopping = True
        self._poke()
        self._thread.join()
        self._selector.close()
        self._awake.close()
        self._wake.close()

    def add(self, name: str, port: socket.socket) -> threading.Event:
        """A guest was started; the event is set when its agent answers."""
        peer = Peer(name, port)
        with self._lock:
            self._peers[name] = peer
            self._selector.register(port, selectors.EVENT_READ, peer)
        self._poke()
        return peer.ready

    def call(self, guest: str, kind: bytes, user: str, command: str, stdin: bytes) -> Call:
        """Start a service (`wire.SERVICE`) or a shell command (`wire.EXEC`) in a guest."""
        with self._lock:
            peer = self._peers.get(guest)
            if peer is None:
                raise LabError(f"{guest} is not running")
            channel = peer.new_channel()
            call = Call(self, peer, channel, stdin)
            peer.routes[channel] = call
            peer.open(channel, kind, user, "dom0", command)
            call.feed()
        self._poke()
        return call

    def hang_up(self, peer: Peer, channel: int) -> None:
        """Close a channel from the host's side."""
        with self._lock:
            if peer.routes.pop(channel, None):
                peer.send(channel, wire.CLOSE)
        self._poke()

    def lose_connections(self) -> None:
        """Close every channel at both of its ends."""
        with self._lock:
            for peer in self._peers.values():
                for channel, route in peer.routes.items():
                    peer.send(channel, wire.CLOSE)
                    if isinstance(route, Call):
                        route.frame(wire.CLOSE, b"")
                peer.routes.clear()
        self._poke()

    def send(self, peer: Peer, channel: int, kind: int, payload: bytes) -> None:
        """Send a frame of a call."""
        with self._lock:
            peer.send(channel, kind, payload)
        self._poke()

    def _poke(self) -> None:
        with contextlib.suppress(OSError):
            self._wake.send(b"\0")

    def _run(self) -> None:
        while not self._stopping:
            ready = self._selector.select()
            with self._lock:
                for key, mask in ready:
                    peer: Peer | None = key.data
                    if peer is None:
                        with contextlib.suppress(BlockingIOError):
                            self._awake.recv(4096)
                    elif self._peers.get(peer.name) is peer:
                        self._move(peer, mask)
                for peer in self._peers.values():
                    events = selectors.EVENT_WRITE if peer.out else 0
                    self._selector.modify(peer.port, selectors.EVENT_READ | events, peer)

    def _move(self, peer: Peer, mask: int) -> None:
        try:
            if mask & selectors.EVENT_READ:
                data = peer.port.recv(1 << 18)
                if not data:
                    raise ConnectionResetError
                for channel, kind, payload in peer.parser.feed(data):
                    self._frame(peer, channel, kind, payload)
            if mask & selectors.EVENT_WRITE and peer.out:
                del peer.out[: peer.port.send(peer.out)]
        except BlockingIOError:
            pass
        except OSError:
            self._lose(peer)

    def _lose(self, peer: Peer) -> None:
        """A guest has gone: so have its connections."""
        del self._peers[peer.name]
        self._selector.unregister(peer.port)
        peer.port.close()
        for route in peer.routes.values():
            self._forward(route, wire.CLOSE, b"")
        peer.routes.clear()

    def _frame(self, peer: Peer, channel: int, kind: int, payload: bytes) -> None:
        if kind == wire.READY:
            peer.ready.set()
        elif kind == wire.CHANGED:
            self._changed(peer.name, payload.decode(errors="replace"))
        elif kind == wire.CALL:
            self._route(peer, channel, *payload.decode(errors="replace").split("\0", 1))
        else:
            route = peer.routes.get(channel)
            if kind == wire.CLOSE:
                peer.routes.pop(channel, None)
            if route:
                self._forward(route, kind, payload)

    @staticmethod
    def _forward(route: "Call | tuple[Peer, int]", kind: int, payload: bytes) -> None:
        if isinstance(route, Call):
            route.frame(kind, payload)
            return
        other, number = route
        if kind == wire.CLOSE and other.routes.pop(number, None) is None:
            return  # it has closed its end already
        other.send(number, kind, payload)

    def _route(self, peer: Peer, channel: int, target: str, service: str) -> None:
        """A guest calls another one."""
        user = self._policy(peer.name, target, service)
        other = self._peers.get(target)
        if user is None or other is None:
            # The caller of a qube that does not run is told no more than who may not call it.
            answer = wire.number(wire.EXIT_REFUSED) + b"Request refused"
        else:
            number = other.new_channel()
            other.routes[number] = (peer, channel)
            peer.routes[channel] = (other, number)
            peer.send(channel, wire.ACCEPT)
            other.open(number, wire.SERVICE, user, peer.name, service)
            return
        peer.send(channel, wire.REFUSE, answer)
