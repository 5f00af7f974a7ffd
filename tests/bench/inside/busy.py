# SPDX-License-Identifier: GPL-2.0-or-later
"""What an attached device gives in a computer of one processor that is busy with other things.

Backend and frontend share that processor. What carries the data between qubes, which on Xen is
memory and no process, is kept out of the comparison: it has the best priority throughout.
"""

import contextlib
import json
import mmap
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from . import isochronous, machine
from .cases import SUPER, Row, rest
from .qubes import BACKEND, FRONTEND, Qubes

LOOPS = 3
PRIORITIES = (0, -5, -10, -15)
SMALL, LARGE = 4096, 4 << 20
SMALL_READS = 20
STREAM = 60
BEST = -20
FLOOD_SECONDS = 2
FLOODER = """
import os, struct, threading
devid = int(os.read(0, 64).split()[0])
def drain():
    while os.read(0, 1 << 20): pass
threading.Thread(target=drain, daemon=True).start()
ask = bytes.fromhex("8006000100001200")  # GET_DESCRIPTOR of the device, 18 bytes
one = struct.pack(">5I5I", 1, 1, devid, 1, 0, 0, 18, 0, 0, 0) + ask
while True: os.write(1, one * 1000)
"""
"""A frontend that asks for the same all the time (Documentation/usb/usbip_protocol.rst)."""


def carriers(qubes: Qubes) -> set[int]:
    """qrexec's process of each end of each connection."""
    found = set()
    for pid in qubes.processes():
        for field in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if field.startswith(b"QREXEC_AGENT_PID="):
                found.add(int(field.partition(b"=")[2]))
    return {pid for pid in found if Path(f"/proc/{pid}").exists()}


def prefer(qubes: Qubes, priority: int) -> None:
    """Give the carriers a priority, and what stands for Xen the best."""
    infrastructure = {os.getpid(), *map(qubes.pid, qubes.names())}
    for pid in infrastructure | carriers(qubes):
        for task in map(int, os.listdir(f"/proc/{pid}/task")):
            is_carrier = task == pid and pid not in infrastructure
            os.setpriority(os.PRIO_PROCESS, task, priority if is_carrier else BEST)


def normal(qubes: Qubes) -> None:
    """Take back what `prefer` gave to those that live on."""
    for pid in (os.getpid(), *map(qubes.pid, qubes.names())):
        for task in map(int, os.listdir(f"/proc/{pid}/task")):
            os.setpriority(os.PRIO_PROCESS, task, 0)


def aside(measure: Callable[[], list[float]]) -> list[float]:
    """What a function gives in a process of ordinary priority."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, 0)
            os.write(theirs, json.dumps(measure()).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as reader:
        text = reader.read()
    os.waitpid(pid, 0)
    found: list[float] = json.loads(text)
    return found


def reads(size: int, count: int) -> list[float]:
    """Milliseconds of some reads past every cache."""
    (disk,) = machine.disks()
    fd = os.open(f"/dev/{disk}", os.O_RDONLY | os.O_DIRECT)
    space = mmap.mmap(-1, min(size, 1 << 20))
    times = []
    for number in range(count):
        start = time.monotonic()
        done = 0
        while done < size:
            done += os.preadv(fd, [space], (number * size + done) % (1 << 29))
        times.append(1e3 * (time.monotonic() - start))
    os.close(fd)
    return times


def rows(qubes: Qubes, runs: int, where: str) -> Iterator[Row]:
    """Reads with each priority; in a busy machine also what is left for the others."""
    with spinning(qubes, 0 if where == "idle" else LOOPS) as loops:
        for priority in PRIORITIES:
            prefer(qubes, priority)
            label = f"{where}, carriers at {priority}"
            yield f"4 KiB read, {label}, ms", aside(lambda: reads(SMALL, SMALL_READS))
            before, start = sum(spent(loop.pid) for loop in loops), time.monotonic()
            yield f"4 MiB read, {label}, ms", aside(lambda: reads(LARGE, runs))
            if loops:
                taken = sum(spent(loop.pid) for loop in loops) - before
                left = 100 * taken / (time.monotonic() - start)
                yield f"4 MiB read, {label}, % left for the others", [left]


@contextlib.contextmanager
def spinning(qubes: Qubes, count: int) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """So many processes that compute until the end of a `with`; all priorities are normal then."""
    loop = ["/bin/sh", "-c", "while :; do :; done"]
    loops = [subprocess.Popen(loop) for _ in range(count)]
    try:
        yield loops
    finally:
        for each in loops:
            each.kill()
            each.wait()
        normal(qubes)


def spent(pid: int) -> float:
    """Seconds of processor time of a process's first thread."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def stick(qubes: Qubes, runs: int) -> Iterator[Row]:
    """Reads of a stick."""
    qubes.attach(SUPER)
    machine.await_disks()
    yield "the program's own priority of the carriers", own(qubes)
    for where in ("idle", "busy"):
        yield from rows(qubes, runs, where)
    qubes.detach(SUPER)
    rest(qubes, SUPER)


def own(qubes: Qubes) -> list[float]:
    """What the program gave the carriers."""
    return [float(os.getpriority(os.PRIO_PROCESS, pid)) for pid in carriers(qubes)]


def sound(qubes: Qubes) -> Iterator[Row]:
    """An isochronous stream."""
    qubes.attach(isochronous.CARD)
    machine.settle()
    (folder,) = machine.imported()
    for where in ("idle", "busy"):
        with spinning(qubes, 0 if where == "idle" else LOOPS):
            for priority in PRIORITIES:
                prefer(qubes, priority)
                times = aside(lambda: isochronous.completions(folder, STREAM))
                yield f"isochronous stream, {where}, carriers at {priority}, ms", times
    qubes.detach(isochronous.CARD)
    rest(qubes)


def flooded(qubes: Qubes, runs: int) -> Iterator[Row]:
    """What the backend's carrier takes from three loops while the frontend floods it."""
    enter = ["nsenter", "--mount", f"--target={qubes.pid(FRONTEND)}"]
    call = ["qrexec-client-vm", BACKEND, f"qubes.USB+{SUPER}", "/usr/bin/python3", "-c", FLOODER]
    flood = subprocess.Popen([*enter, *call])
    try:
        machine.await_true(qubes.is_published)
        home = os.readlink(f"/proc/{qubes.pid(BACKEND)}/ns/mnt")
        (carrier,) = (p for p in carriers(qubes) if os.readlink(f"/proc/{p}/ns/mnt") == home)
        with spinning(qubes, LOOPS) as loops:
            for priority in PRIORITIES:
                prefer(qubes, priority)
                shares = [100 * share(carrier, loops) for _ in range(runs)]
                yield f"flooded, carriers at {priority}, % for the backend's", shares
    finally:
        flood.kill()
        flood.wait()
    rest(qubes, SUPER)


def share(carrier: int, loops: "list[subprocess.Popen[bytes]]") -> float:
    """The part of a carrier in what it and the loops have of the processor for a while."""

    def times() -> tuple[float, float]:
        return spent(carrier), sum(spent(loop.pid) for loop in loops)

    before = times()
    time.sleep(FLOOD_SECONDS)
    its, theirs = (after - then for after, then in zip(times(), before, strict=True))
    return its / (its + theirs)
