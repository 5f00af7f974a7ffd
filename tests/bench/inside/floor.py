# SPDX-License-Identifier: GPL-2.0-or-later
"""The least that an attach can take: a warm process that writes the kernel's files, no more.

Both ends of a socketpair go to the two drivers, without qrexec; the same events are awaited.
"""

import os
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path

from usb_proxy.host import Host
from usb_proxy.idents import BusId
from usb_proxy.sysfs import UsbDevice
from usb_proxy.uevents import Uevents

DRIVER = "/sys/bus/usb/drivers/usbip-host"
VHCI = "/sys/devices/platform/vhci_hcd.0"
SPEEDS = {"12": (2, "hs"), "480": (3, "hs"), "5000": (5, "ss")}
WAIT_SECONDS = 20
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33  # asm-generic/socket.h


def write(path: str, text: str) -> None:
    """One write, as the kernel wants it."""
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def await_event(events: Uevents, action: str, is_wanted: Callable[[str], bool]) -> str:
    """Wait until the kernel has announced such an action; the path of what it happened to."""
    poll = select.poll()
    poll.register(events.fileno(), select.POLLIN)
    while poll.poll(WAIT_SECONDS * 1000):
        for event in events.pending():
            said, _, path = event.partition("@")
            if said == action and is_wanted(path):
                return path
    raise TimeoutError(f"no {action} of the device")


def is_imported(path: str) -> bool:
    """Whether this is a whole device that came over vhci."""
    name = path.rpartition("/")[2]
    return path.startswith("/devices/platform/vhci_hcd") and "-" in name and ":" not in name


class Floor:
    """One device at a time."""

    def __init__(self) -> None:
        self._ends: list[socket.socket] = []
        self._port = self._path = ""

    def attach(self, bus_id: str, buffers: int | None = None) -> float:
        """Attach: the milliseconds until the kernel has bound the driver in the frontend.

        `buffers` is the size of the socket's, in bytes, the kernel's own if None.
        """
        start = time.monotonic()
        folder = f"/sys/bus/usb/devices/{bus_id}"
        speed, half = SPEEDS[Path(f"{folder}/speed").read_text().strip()]
        bus, device = (int(Path(f"{folder}/{n}").read_text()) for n in ("busnum", "devnum"))
        write(f"{DRIVER}/match_busid", f"add {bus_id}")
        write(f"{folder}/driver/unbind", bus_id)
        write(f"{DRIVER}/bind", bus_id)
        self._ends = list(socket.socketpair())
        if buffers is not None:
            for end in self._ends:
                for option in (SO_SNDBUFFORCE, SO_RCVBUFFORCE):
                    end.setsockopt(socket.SOL_SOCKET, option, buffers)
        with Uevents() as events:
            write(f"{folder}/usbip_sockfd", str(self._ends[0].fileno()))
            for line in Path(f"{VHCI}/status").read_text().splitlines():
                fields = line.split()
                if fields[0] == half and fields[2] == "004":
                    break
            self._port = fields[1]
            write(
                f"{VHCI}/attach",
                f"{fields[1]} {self._ends[1].fileno()} {bus << 16 | device} {speed}",
            )
            self._path = await_event(events, "bind", is_imported)
        return 1e3 * (time.monotonic() - start)

    def folder(self) -> Path:
        """Where the attached device is in sysfs."""
        return Path(f"/sys{self._path}")

    def detach(self, bus_id: str) -> tuple[float, float]:
        """Detach at the frontend: the ms until it has gone there, and more until it is back."""
        with UsbDevice(Host(), BusId(bus_id)) as device, Uevents() as events:
            device.pin()
            start = time.monotonic()
            write(f"{VHCI}/detach", self._port)
            await_event(events, "remove", self._path.__eq__)
            gone = time.monotonic()
            self._give_back(bus_id)
        return 1e3 * (gone - start), 1e3 * (time.monotonic() - gone)

    def take_back(self, bus_id: str) -> float:
        """Detach at the backend: the milliseconds until the device is back with its driver."""
        with UsbDevice(Host(), BusId(bus_id)) as device:
            device.pin()
            start = time.monotonic()
            # As if the other side had closed; the driver then shuts down the other half.
            self._ends[0].shutdown(socket.SHUT_RD)
            poll = select.poll()
            poll.register(self._ends[0], 0)
            poll.poll()
            self._give_back(bus_id)
        return 1e3 * (time.monotonic() - start)

    def _give_back(self, bus_id: str) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            # It waits for the kernel's reset of the device.
            write(f"/sys/bus/usb/devices/{bus_id}/usbip_sockfd", str(theirs.fileno()))
            write(f"/sys/bus/usb/devices/{bus_id}/driver/unbind", bus_id)
        write(f"{DRIVER}/rebind", bus_id)
        for end in self._ends:
            end.close()
