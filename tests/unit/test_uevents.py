# SPDX-License-Identifier: GPL-2.0-or-later
"""The filter that lets one event through: run by the kernel, on a socket that anybody may fill."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from usb_proxy.uevents import Uevents

BUS = "/devices/pci0000:00/0000:00:14.0/usb2/2-1"
Wire = tuple[Uevents, socket.socket, socket.socket]


@pytest.fixture
def wire() -> Iterator[Wire]:
    """Uevents that listen to a socket which does not wait, and what fills that."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)
    with ours, theirs, Uevents() as events:
        kernels, events._socket = events._socket, ours
        kernels.close()
        yield events, ours, theirs


@pytest.mark.parametrize("path", [BUS, BUS + ".4", BUS + ".4.1", BUS + "/2-1.4/2-1.4.1.2.3", "/d"])
def test_one_event_alone_is_heard(wire: Wire, path: str) -> None:
    events, ours, theirs = wire
    events.hear_only(f"remove@{path}")
    wanted = f"remove@{path}\0ACTION=remove\0".encode()
    for other in (
        f"add@{path}\0ACTION=add\0",
        f"remove@{path}1\0ACTION=remove\0",
        f"remove@{path}/2-1:1.0\0ACTION=remove\0",
        f"remove@{path[:-1]}\0ACTION=remove\0",
        f"remove@{path}",
        f"xremove@{path}\0",
        "libudev\0\xfe\xed\xca\xfe",
        "",
    ):
        theirs.send(other.encode())
    theirs.send(wanted)
    assert ours.recv(4096) == wanted
    with pytest.raises(BlockingIOError):
        ours.recv(4096)


@pytest.mark.parametrize("path", [BUS, BUS + ".4", BUS + ".41", BUS + ".4.1", "/d"])
def test_one_event_and_all_below_are_heard(wire: Wire, path: str) -> None:
    events, ours, theirs = wire
    events.hear_only(f"remove@{path}", f"add@{path}/")
    for event, is_heard in (
        (f"remove@{path}", True),
        (f"remove@{path}/2-1:1.0", False),
        (f"add@{path}", False),
        (f"add@{path}/", True),
        (f"add@{path}/2-1:1.0", True),
        (f"add@{path}1/2-1:1.0", False),
        (f"bind@{path}/2-1:1.0", False),
    ):
        theirs.send(f"{event}\0ACTION=x\0DEVPATH={path}\0SUBSYSTEM=usb\0".encode())
        try:
            heard = ours.recv(4096).partition(b"\0")[0].decode()
        except BlockingIOError:
            heard = ""
        assert heard == (event if is_heard else "")
