# SPDX-License-Identifier: GPL-2.0-or-later
"""The frames between host, agent and the process of each connection.

A frame is a kind (one byte) and a payload. On the guest's port it is preceded by the number of
its channel and its length; between an agent and a connection it is one packet of a
`SOCK_SEQPACKET` socket. A sender may have `WINDOW` bytes of stdin, stdout and stderr together on
the way; `CREDIT` frames give it back what the far end has delivered. So whoever carries frames
never has to hold more than that for a connection, and never has to make anybody else wait.

Nothing is imported here: every import costs start-up time in an emulated guest.
"""

# host -> guest: OPEN starts a service or a command; ACCEPT and REFUSE answer a CALL
# guest -> host: CALL asks for another guest's service; READY, CHANGED are news on channel 0
OPEN, CALL, ACCEPT, REFUSE, STDIN, STDOUT, STDERR, EXIT, CREDIT, CLOSE, READY, CHANGED = range(12)
SERVICE, EXEC, READ = b"service", b"exec", b"read"  # what OPEN can start

CHUNK = 1 << 16  # most data in one frame, as in qrexec
WINDOW = 1 << 18
HEADER = 9

EXIT_PROBLEM, EXIT_REFUSED, EXIT_NOT_FOUND = 125, 126, 127  # as in qrexec


def number(value: int) -> bytes:
    """A number as the payload of EXIT or CREDIT."""
    return value.to_bytes(4, "big")


def value(payload: "bytes | bytearray") -> int:
    """The number in a payload."""
    return int.from_bytes(payload[:4], "big")


def pack(channel: int, kind: int, payload: bytes = b"") -> bytes:
    """A frame as it goes over a port."""
    return number(channel) + bytes((kind,)) + number(len(payload)) + payload


class Parser:
    """Cuts what was read from a port into frames."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> "list[tuple[int, int, bytes]]":
        """The frames that are complete with `data`: channel, kind, payload."""
        self._data += data
        frames = []
        start = 0
        while len(self._data) - start >= HEADER:
            body = start + HEADER
            end = body + value(self._data[start + 5 : body])
            if end > len(self._data):
                break
            frames.append(
                (
                    value(self._data[start : start + 4]),
                    self._data[start + 4],
                    bytes(self._data[body:end]),
                )
            )
            start = end
        del self._data[:start]
        return frames
