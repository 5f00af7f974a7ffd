# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest as the benchmark sees it: devices, their drivers, and what the host is asked for."""

import glob
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

ASK = Path("/run/lab-qubesdb")
DEVICES = Path("/sys/bus/usb/devices")
VHCI = "/sys/devices/platform/vhci_hcd.0"
MODULES = ("vhci-hcd", "usbip-host")
PAUSE = 0.2


def load_modules() -> None:
    """Load what else an attach would have to."""
    subprocess.run(["modprobe", "-a", "overlay", *MODULES], check=True)


def await_true(condition: Callable[[], bool]) -> None:
    """Wait, between measurements and without a deadline: the clock runs away meanwhile."""
    while not condition():
        time.sleep(PAUSE)


def ask(what: str) -> None:
    """Ask the host to do something: it watches this folder, as it does dom0's database."""
    fresh = ASK.with_name("lab-qubesdb.new") / "bench"
    fresh.write_text("")
    fresh.rename(ASK / f"%bench%{what.replace(' ', '%')}")


def has_driver(bus_id: str) -> bool:
    """Whether a device is with its usual drivers."""
    folder = DEVICES / bus_id
    return (
        (folder / "driver").is_symlink()
        and os.readlink(folder / "driver").endswith("/usb")
        and (folder / f"{bus_id}:1.0/driver").is_symlink()
    )


def plug(bus_id: str, id: str) -> None:
    """Have a stick plugged in, and wait until it can be used."""
    ask(f"plug {id}")
    await_true(lambda: has_driver(bus_id))
    settle()


def unplug(bus_id: str, id: str) -> None:
    """Have a stick pulled out, and wait until the kernel has noticed."""
    ask(f"unplug {id}")
    await_true(lambda: not (DEVICES / bus_id).exists())
    settle()


def settle() -> None:
    """Wait until udev has done all that it has to do."""
    subprocess.run(["udevadm", "settle"], check=True)


def disks() -> list[str]:
    """The names of the disks that came from another qube."""
    return [Path(p).name for p in glob.glob(f"{VHCI}/usb*/*-*/*:1.0/host*/target*/*/block/sd*")]


def await_disks(count: int = 1) -> None:
    """Wait until attached sticks have become disks."""
    await_true(lambda: len(disks()) == count)
    settle()


def ports_are_free() -> bool:
    """Whether every port of the frontend's kernel is free."""
    return all(
        line.split()[2] == "004"
        for path in glob.glob(f"{VHCI}/status*")
        for line in Path(path).read_text().splitlines()[1:]
    )


class KernelLog:
    """When the kernel said something, on our clock."""

    def __init__(self) -> None:
        self._fd = os.open("/dev/kmsg", os.O_RDWR | os.O_NONBLOCK)
        os.lseek(self._fd, 0, os.SEEK_END)
        now = time.monotonic()
        os.write(self._fd, b"<7>bench")
        self._offset = now - self.when("bench")

    def when(self, text: str) -> float:
        """Read on to a line with this text; its time."""
        while True:
            try:
                head, _, said = os.read(self._fd, 8192).decode().partition(";")
            except BlockingIOError:
                time.sleep(PAUSE)
                continue
            if text in said:
                return int(head.split(",")[2]) / 1e6 + getattr(self, "_offset", 0.0)
