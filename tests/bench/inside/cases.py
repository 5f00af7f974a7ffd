# SPDX-License-Identifier: GPL-2.0-or-later
"""What is measured of an implementation between the two kernels; all in milliseconds."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.lab.guest.agent import watch

from . import machine
from .floor import Floor
from .qubes import BACKEND, FRONTEND, OTHER, Qubes

SUPER, HIGH = "2-1", "3-1"
VENDOR_PRODUCT = "0x46f4.0x0001"
ANNOUNCEMENT = "46f4:0001 080650"
"""What dom0 says of it: idents.Announcement."""
STICKS = {f"2-{n}": f"s{n}" for n in range(1, 11)}
ROUNDS_OF_TEN = 3

Row = tuple[str, list[float]]


def rest(qubes: Qubes, *bus_ids: str) -> None:
    """Wait until nothing of an attachment is left."""
    machine.await_true(
        lambda: (
            not qubes.processes()
            and not qubes.is_published()
            and machine.ports_are_free()
            and all(map(machine.has_driver, bus_ids))
        )
    )
    machine.settle()


def remove_modules() -> None:
    """As after a boot; the files of the modules stay in memory."""
    for module in machine.MODULES:
        subprocess.run(["rmmod", module], check=True)
    machine.settle()


def floor(bus_id: str, runs: int) -> Iterator[Row]:
    """What the kernel needs for one device."""
    low = Floor()
    attach, gone, back, taken = [], [], [], []
    for _ in range(runs):
        attach.append(low.attach(bus_id))
        machine.await_disks()
        first, second = low.detach(bus_id)
        gone.append(first)
        back.append(second)
        machine.await_free_ports()
        low.attach(bus_id)
        machine.await_disks()
        taken.append(low.take_back(bus_id))
        machine.await_free_ports()
    speed = "SuperSpeed" if bus_id == SUPER else "high speed"
    yield f"attach, {speed}", attach
    if bus_id == SUPER:
        yield "detach in the frontend, until it returns", gone
        yield "detach in the frontend, until the device is back", back
        yield "detach in the backend, until it returns", taken


def round_trip(qubes: Qubes, bus_id: str, device: str) -> float:
    """Attach and detach once: the time of the attach."""
    taken = qubes.attach(device)
    machine.await_disks()
    qubes.detach(device.partition("\n")[0])
    rest(qubes, bus_id)
    return taken


def attaches(qubes: Qubes, bus_id: str, device: str, runs: int) -> list[float]:
    """The times of some attaches."""
    return [round_trip(qubes, bus_id, device) for _ in range(runs)]


def first_attaches(qubes: Qubes, runs: int) -> list[float]:
    """The times of attaches that have to load the kernel's modules."""
    times = []
    for _ in range(runs):
        remove_modules()
        times.append(round_trip(qubes, SUPER, SUPER))
    return times


def detaches(qubes: Qubes, runs: int) -> Iterator[Row]:
    """Detaching from either side."""
    returned, unpublished, back, taken, told = [], [], [], [], []
    for _ in range(runs):
        qubes.attach(SUPER)
        machine.await_disks()
        returned.append(qubes.detach(SUPER))
        end = time.monotonic()
        # Earlier than the service's return is fine, too.
        unpublished.append(qubes.await_unpublished(end - returned[-1] / 1e3) - returned[-1])
        machine.await_true(lambda: machine.has_driver(SUPER))
        back.append(1e3 * (time.monotonic() - end))
        rest(qubes, SUPER)
        qubes.attach(SUPER)
        machine.await_disks()
        start = time.monotonic()
        taken.append(qubes.take_back(SUPER))
        told.append(qubes.await_unpublished(start) - taken[-1])
        rest(qubes, SUPER)
    yield "detach in the frontend, until it returns", returned
    yield "detach in the frontend, then until unpublished", unpublished
    yield "detach in the frontend, until the device is back", back
    yield "detach in the backend, until it returns", taken
    yield "detach in the backend, then until unpublished", told


def moves(qubes: Qubes, runs: int, count: int) -> Iterator[Row]:
    """Detaches from one qube and attaches to another, back to back."""
    whole, attach = [], []
    here, there = FRONTEND, OTHER
    qubes.attach(SUPER, here)
    for _ in range(count):
        gone = qubes.detach(SUPER, here)
        attach.append(qubes.attach(SUPER, there))
        whole.append(gone + attach[-1])
        here, there = there, here
    qubes.detach(SUPER, here)
    rest(qubes, SUPER)
    yield "move to another qube", whole
    yield "the attach of a move, the 2nd and those after it", attach[1 : runs + 1]
    yield "the attach of a move, the 100th and those before it", attach[-runs:]


def unplugs(qubes: Qubes, runs: int) -> Iterator[Row]:
    """From the kernel's word that a device has gone to the key's and the record's removal."""
    key, record = [], []
    for _ in range(runs):
        qubes.attach(SUPER)
        machine.await_disks()
        disconnect = machine.Disconnect()
        changes = watch(str(qubes.root(FRONTEND) / "run/qubes"))
        os.set_blocking(changes, True)
        before = time.monotonic()
        machine.ask(f"unplug {STICKS[SUPER]}")
        while qubes.records():
            os.read(changes, 4096)
        end = time.monotonic()
        os.close(changes)
        start = disconnect.when()
        record.append(1e3 * (end - start))
        key.append(qubes.await_unpublished(before) - 1e3 * (start - before))
        machine.await_true(lambda: not qubes.processes())
        machine.plug(SUPER, STICKS[SUPER])
    yield "unplug, until the key is removed", key
    yield "unplug, until the record is removed", record


def ten(qubes: Qubes, runs: int, count: int) -> Iterator[Row]:
    """Ten devices: the whole time, one after the other and all at once."""
    devices = list(STICKS)[: count + 1]
    for bus_id in devices[1:]:
        machine.plug(bus_id, STICKS[bus_id])

    def detach_all() -> None:
        machine.await_disks(len(devices))
        for bus_id in devices:
            qubes.detach(bus_id)
        rest(qubes, *devices)

    row, once = [], []
    for _ in range(min(runs, ROUNDS_OF_TEN)):
        row.append(sum(map(qubes.attach, devices)))
        detach_all()
        start = time.monotonic()
        calls = [
            (bus_id, qubes.start(FRONTEND, "qubes.USBAttach", f"{BACKEND} {bus_id}"))
            for bus_id in devices
        ]
        for bus_id, call in calls:
            qubes.end(call, f"attach {bus_id}")
        once.append(1e3 * (time.monotonic() - start))
        detach_all()
    for bus_id in devices[1:]:
        machine.unplug(bus_id, STICKS[bus_id])
    yield "ten devices, one after the other", row
    yield "ten devices at once", once


def empty_calls(qubes: Qubes, runs: int) -> list[float]:
    """A service that calls one in the backend, both with nothing to do: all is the stand-in's."""
    folder = Path("/usr/local/etc/qubes-rpc")
    for name, command in (
        ("bench.Empty", "exit 0"),
        ("bench.Call", f"exec qrexec-client-vm {BACKEND} bench.Empty /bin/true"),
    ):
        (folder / name).write_text(f"#!/bin/sh\n{command}\n")
        (folder / name).chmod(0o755)
    return [qubes.call(FRONTEND, "bench.Call", "") for _ in range(runs)]
