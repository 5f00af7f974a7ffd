#!/usr/bin/python3 -IS
# SPDX-License-Identifier: GPL-2.0-or-later
"""`peer.py MODE`: the other end of a connection, that does not keep to USB/IP.

A backend's first word is its line; it then plays a high-speed device, or of SPEED, that no driver
wants, well or in the way that MODE names. A frontend reads the line first. The numbers are
those of the kernel's Documentation/usb/usbip_protocol.rst.
"""

import _socket
import os
import select
import signal
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SUBMIT, UNLINK, RET_SUBMIT, RET_UNLINK = 1, 2, 3, 4
HEADER = 48
DEVID = 131074
DEVICE = struct.pack("<BBHBBBBHHHBBBB", 18, 1, 0x200, 255, 0, 0, 64, 0xF001, 1, 1, 0, 0, 0, 1)
CONFIGURATION = struct.pack("<BBHBBBBB", 9, 2, 18, 1, 1, 0, 0x80, 50) + struct.pack(
    "<BBBBBBBBB", 9, 4, 0, 0, 0, 255, 0, 0, 0
)
DESCRIPTORS = {1: DEVICE, 2: CONFIGURATION}
IN = 1
GET_DESCRIPTOR = struct.pack("<BBHHH", 0x80, 6, 0x100, 0, 18)
SILENCE = 120

link = _socket.socket(fileno=os.dup(0))


def both_ways() -> None:
    """Ask the agent for one socket, as the real ones do."""
    os.kill(int(os.environ["QREXEC_AGENT_PID"]), signal.SIGUSR1)


def silence(seconds: float = SILENCE) -> None:
    """Neither read nor write, until the other side lets go."""
    poll = select.poll()
    poll.register(link, select.POLLRDHUP)
    poll.poll(seconds * 1000)


def receive(size: int) -> bytes:
    """Exactly so many bytes; the end of this program when there are no more."""
    data = b""
    while len(data) < size:
        more = link.recv(size - len(data))
        if not more:
            sys.exit(0)
        data += more
    return data


def answer(command: int, number: int, *numbers: int, data: bytes = b"") -> bytes:
    """A reply: `numbers` are status and actual length, 0 where they are missing."""
    body = struct.pack(">2i", *(*numbers, 0, 0)[:2])
    return struct.pack(">5I", command, number, 0, 0, 0) + body.ljust(HEADER - 20, b"\0") + data


def requests() -> "Iterator[tuple[int, int, bytes]]":
    """What the frontend's kernel asks: command, number, what a good device would answer."""
    while True:
        head = receive(HEADER)
        command, number, _, direction = struct.unpack(">4I", head[:16])
        if command == UNLINK:
            yield command, number, answer(RET_UNLINK, number)
            continue
        length = struct.unpack(">I", head[24:28])[0]
        if direction != IN:
            receive(length)
            yield command, number, answer(RET_SUBMIT, number, 0, length)
            continue
        data = DESCRIPTORS.get(head[43], b"\0\0")[:length]
        if head[41] == 6 and head[43] not in DESCRIPTORS:
            yield command, number, answer(RET_SUBMIT, number, -32)
        else:
            yield command, number, answer(RET_SUBMIT, number, 0, len(data), data=data)


def backend(mode: str, *arguments: str) -> None:
    """What comes instead of a device after a good line."""
    both_ways()
    link.sendall(f"{DEVID} {os.environ.get('SPEED', '480')}\n".encode())
    BACKENDS[mode](*arguments)


def lie(*numbers: int, to: int = 0, command: int = RET_SUBMIT, data: bytes = b"") -> None:
    """Answer each request alike, with a number that is `to` more than it should be."""
    for _, number, _ in requests():
        link.sendall(answer(command, number + to, *numbers, data=data))


def half_open() -> None:
    """Say that nothing more will come, and listen."""
    link.shutdown(_socket.SHUT_WR)
    silence()


def cut(size: str, then: str) -> None:
    """Stop within the first answer."""
    link.sendall(next(requests())[2][: int(size)])
    if then == "silent":
        silence()


def slow() -> None:
    """A byte of an answer each second."""
    for _, _, good in requests():
        for byte in good:
            link.sendall(bytes((byte,)))
            select.select([], [], [], 1)


def leave(after: str) -> None:
    """Be a good device for so many answers."""
    for count, (_, _, good) in enumerate(requests()):
        if count == int(after):
            return
        link.sendall(good)


def later(kind: str) -> None:
    """Be a good device until the test says that it is time to be another."""
    for good in until_then():
        link.sendall(good)
    if kind == "garbage":
        link.sendall(b"garbage" * 100)
    elif kind == "a flood":
        while True:
            link.sendall(bytes(65536))
    elif kind == "half a header":
        link.sendall(answer(RET_SUBMIT, 1)[:20])
    elif kind == "half-open":
        link.shutdown(_socket.SHUT_WR)
    elif kind == "the end":
        return
    elif kind != "silence":
        raise ValueError(kind)
    silence()


def until_then() -> "Iterator[bytes]":
    """The answers of a good device, until the test has made the file."""
    poll = select.poll()
    poll.register(link, select.POLLIN | select.POLLRDHUP)
    asked = requests()
    while not os.path.exists("/run/peer-misbehaves"):
        for _, event in poll.poll(100):
            if event & select.POLLRDHUP:
                sys.exit(0)
            yield next(asked)[2]


BACKENDS: "dict[str, Callable[..., None]]" = {
    "another number": lambda: lie(to=77),
    "length": lambda size: lie(0, int(size)),
    "status": lambda status: lie(int(status)),
    "command": lambda command: lie(command=int(command)),
    "zeros": lambda: lie(0, 18, data=bytes(18)),
    "half-open": half_open,
    "cut": cut,
    "slow": slow,
    "leaves": leave,
    "attached": later,
}


def request(
    number: int,
    devid: int,
    *,
    length: int = 18,
    ep: int = 0,
    direction: int = IN,
    packets: int = 0,
    setup: bytes = GET_DESCRIPTOR,
    command: int = SUBMIT,
) -> bytes:
    """A request of a frontend, a good one but for what is given."""
    head = struct.pack(">5I", command, number, devid, direction, ep)
    return head + struct.pack(">Iiiii", 0x200, length, 0, packets, 0) + setup


def tell(number: int, devid: int, *setup: int) -> bytes:
    """A control request without data: bmRequestType, bRequest, wValue, wIndex."""
    packed = struct.pack("<BBHHH", *setup, 0)
    return request(number, devid, length=0, direction=0, setup=packed)


FRONTENDS: "dict[str, Callable[[int], bytes]]" = {
    "silence": lambda _: b"",
    "garbage": lambda _: b"garbage" * 1000,
    "wrong devid": lambda _: request(1, 0x70007),
    "unknown command": lambda devid: request(1, devid, command=9),
    "a reply instead of a request": lambda devid: request(1, devid, command=RET_SUBMIT),
    "half a header": lambda devid: request(1, devid)[:20],
    "half a header, then leaves": lambda devid: request(1, devid)[:20],
    "data that do not come": lambda devid: request(1, devid, length=4096, ep=2, direction=0),
    "length of 2 GiB": lambda devid: request(1, devid, length=0x7FFFFFFF),
    "negative length": lambda devid: request(1, devid, length=-1),
    "2^31 packets": lambda devid: request(1, devid, packets=0x7FFFFFFF),
    "an endpoint that is not there": lambda devid: request(1, devid, ep=15),
    "an endpoint above 15": lambda devid: request(1, devid, ep=255),
    "a configuration that is not there": lambda devid: tell(1, devid, 0, 9, 99, 0),
    "an interface that is not there": lambda devid: tell(1, devid, 1, 11, 7, 99),
    "resets": lambda devid: b"".join(tell(n, devid, 0x23, 3, 4, 1) for n in range(1, 4)),
    "takes back what it never asked": lambda devid: b"".join(
        request(n, devid, command=UNLINK) for n in range(1, 500)
    ),
    "a thousand requests, then leaves": lambda devid: b"".join(
        request(n, devid) for n in range(1, 1000)
    ),
    "half-open": lambda devid: request(1, devid),
    "slow": lambda devid: request(1, devid),
    "asks and never reads": lambda devid: b"".join(request(n, devid) for n in range(1, 1 << 15)),
}


def frontend(mode: str) -> None:
    """What comes instead of a kernel's requests."""
    if mode == "exits at once":
        return
    line = b""
    while not line.endswith(b"\n"):
        line += receive(1)
    if mode == "exits after the line":
        return
    if mode == "closes without switching":
        link.shutdown(_socket.SHUT_RDWR)
        return
    both_ways()
    said = FRONTENDS[mode](int(line.split()[0]))
    for part in (said[n : n + 1] for n in range(len(said))) if mode == "slow" else (said,):
        link.sendall(part)
        select.select([], [], [], 1 if mode == "slow" else 0)
    if mode == "half-open":
        link.shutdown(_socket.SHUT_WR)
    if not mode.endswith("leaves"):
        silence()


def main(role: str, *mode: str) -> None:
    """`backend MODE ARGUMENTS` or `frontend MODE`."""
    try:
        {"backend": backend, "frontend": frontend}[role](*mode)
    except OSError:
        pass  # The other side has closed: the end of every lie.


main(*sys.argv[1:])
