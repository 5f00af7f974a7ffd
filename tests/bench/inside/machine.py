# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest as the benchmark sees it: devices, their drivers, and what the host is asked for."""

import glob
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

ASK = Path("/run/lab-qubesdb")
DEVICES = Path("/sys/bus/usb/devices")
VHCI = "/sys/devices/platform/vhci_hcd.0"
"""It has the files for all controllers."""
IMPORTED = "/sys/devices/platform/vhci_hcd.*/usb*/*-*"
MODULES = ("vhci-hcd", "usbip-host")
TRACING = Path("/sys/kernel/tracing")
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
    return [Path(p).name for p in glob.glob(f"{IMPORTED}/*:1.0/host*/target*/*/block/sd*")]


def imported() -> list[Path]:
    """The devices that came from another qube."""
    return [Path(p).parent for p in glob.glob(f"{IMPORTED}/busnum")]


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


def await_free_ports() -> None:
    """Wait until nothing is attached any more, and udev knows."""
    await_true(ports_are_free)
    settle()


class Disconnect:
    """When the kernel begins to take out a USB device, on our clock."""

    def __init__(self) -> None:
        mount_tracing()
        for name, text in (
            ("trace", ""),
            ("trace_clock", "mono"),
            ("kprobe_events", "p:bench_gone usb_disconnect"),
            ("events/kprobes/bench_gone/enable", "1"),
        ):
            (TRACING / name).write_text(text)

    def when(self) -> float:
        """Seconds; forgets about it then."""
        trace = (TRACING / "trace").read_text()
        (TRACING / "events/kprobes/bench_gone/enable").write_text("0")
        (TRACING / "kprobe_events").write_text("")
        (line,) = re.findall(r" (\d+\.\d+): bench_gone:", trace)[:1]
        return float(line)


def mount_tracing() -> None:
    """Make the kernel's tracing available."""
    if not (TRACING / "trace").exists():
        subprocess.run(["mount", "-n", "-t", "tracefs", "tracefs", TRACING], check=True)
