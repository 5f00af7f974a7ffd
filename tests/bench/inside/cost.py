# SPDX-License-Identifier: GPL-2.0-or-later
"""What an attached device costs while it is attached, and what each program's start costs."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from . import machine
from .cases import SUPER, Row, rest
from .floor import Floor
from .machine import TRACING
from .qubes import FRONTEND, Qubes

MIB = 1 << 20
SIZE = 64 * MIB
IDLE_SECONDS = 60
BUSY_SECONDS = 5
"""From one MiB to the next."""

BUFFERS = {
    "the usual": None,
    "64 KiB of": 64 << 10,
    "1024 KiB of": 1 << 20,
    "4096 KiB of": 4 << 20,
}
"""Sizes of a socket's buffers to try, in bytes; None for the kernel's own."""


def memory(pids: list[int]) -> dict[str, float]:
    """Megabytes of processes together."""
    sums = dict.fromkeys(("Rss", "Pss", "Private_Clean", "Private_Dirty", "VmHWM"), 0.0)
    for pid in pids:
        text = "".join(Path(f"/proc/{pid}/{f}").read_text() for f in ("smaps_rollup", "status"))
        for line in text.splitlines():
            name, _, value = line.partition(":")
            if name in sums:
                sums[name] += int(value.split()[0]) * 1024 / 1e6
    return sums


def activity(pids: list[int]) -> tuple[float, int]:
    """Milliseconds of processor time, and how often processes were woken."""
    spent, woken = 0.0, 0
    for pid in pids:
        spent += int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e6
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if "ctxt_switches" in line:
                woken += int(line.split()[1])
    return spent, woken


class Forks:
    """Counts the forks of processes and of their children."""

    def __init__(self, pids: list[int]) -> None:
        machine.mount_tracing()
        for name, text in (
            ("trace", ""),
            ("set_event_pid", " ".join(map(str, pids))),
            ("options/event-fork", "1"),
            ("events/sched/sched_process_fork/enable", "1"),
        ):
            (TRACING / name).write_text(text)

    def count(self) -> int:
        """How many there were; counts no more."""
        (TRACING / "events/sched/sched_process_fork/enable").write_text("0")
        lines = (TRACING / "trace").read_text().splitlines()
        (TRACING / "set_event_pid").write_text("")
        return sum("sched_process_fork" in line for line in lines)


def read(disk: str, size: int) -> tuple[float, float]:
    """Read from a disk, not from memory: MiB/s, and the machine's milliseconds of work for it."""
    idle, start = idle_seconds(), time.monotonic()
    subprocess.run(
        [
            "dd",
            f"if=/dev/{disk}",
            "of=/dev/null",
            "bs=1M",
            f"count={size // MIB}",
            "iflag=direct",
            "status=none",
        ],
        check=True,
    )
    taken = time.monotonic() - start
    return size / MIB / taken, 1e3 * (taken - (idle_seconds() - idle))


def idle_seconds() -> float:
    """How long the one processor had nothing to do."""
    return float(Path("/proc/uptime").read_text().split()[1])


def attached(qubes: Qubes, runs: int, size: int = SIZE) -> Iterator[Row]:
    """Memory, and what happens in a minute without and with traffic; `size` for a trial."""
    found: dict[str, list[float]] = {}

    def add(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for _ in range(runs):
        qubes.attach(SUPER)
        machine.await_disks()
        machine.await_true(qubes.is_published)
        (disk,) = machine.disks()
        time.sleep(1)
        pids = qubes.processes()
        add_sizes(found, pids)
        add("peak resident, both sides, MB", memory(pids)["VmHWM"])
        for name in ("idle", "busy"):
            before, forks = activity(pids), Forks(pids)
            end = time.monotonic() + IDLE_SECONDS
            if name == "busy":
                speed, work = read(disk, size)
                add("reading 64 MiB, MiB/s", speed)
                add("reading 64 MiB, ms of work", work)
            while (left := end - time.monotonic()) > 0:
                time.sleep(min(left, BUSY_SECONDS if name == "busy" else left))
                if name == "busy":
                    read(disk, MIB)
            after = activity(pids)
            add(f"{name} for 60 s, ms of processor time", after[0] - before[0])
            add(f"{name} for 60 s, wake-ups", after[1] - before[1])
            add(f"{name} for 60 s, forks", forks.count())
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        speed, work = read(disk, size)
        add("reading 64 MiB while stopped, MiB/s", speed)
        add("reading 64 MiB while stopped, ms of work", work)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        qubes.detach(SUPER)
        rest(qubes, SUPER)
    yield from found.items()


def add_sizes(found: dict[str, list[float]], pids: list[int]) -> None:
    """The rows about the memory of the processes of an attached device, and how many they are."""
    sizes = memory(pids)
    for name, value in (
        ("processes of an attached device", len(pids)),
        ("resident, both sides, MB", sizes["Rss"]),
        ("proportional, both sides, MB", sizes["Pss"]),
        ("private, both sides, MB", sizes["Private_Clean"] + sizes["Private_Dirty"]),
    ):
        found.setdefault(name, []).append(value)


def empty_interpreters(runs: int) -> Iterator[Row]:
    """The memory of as many interpreters that have imported nothing, each with its shell."""
    found: dict[str, list[float]] = {}
    wait = "/usr/bin/python3 -IS -c 'print(flush=True); input()'; exit $?"
    for _ in range(runs):
        shells = [
            subprocess.Popen(["/bin/sh", "-c", wait], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            for _ in range(2)
        ]
        pids = []
        for shell in shells:
            assert shell.stdout is not None
            shell.stdout.readline()
            children = Path(f"/proc/{shell.pid}/task/{shell.pid}/children").read_text().split()
            pids += [shell.pid, *map(int, children)]
        add_sizes(found, pids)
        for shell in shells:
            shell.communicate(b"\n")
    yield from found.items()


def buffers(bus_id: str, runs: int) -> Iterator[Row]:
    """How fast a device is read through sockets with buffers of several sizes, without qrexec."""
    for name, size in BUFFERS.items():
        low = Floor()
        low.attach(bus_id, size)
        machine.await_disks()
        (disk,) = machine.disks()
        speeds = [read(disk, SIZE // 8)[0] for _ in range(runs)]
        yield f"reading 8 MiB, {name} buffers on a plain socket, MiB/s", speeds
        low.detach(bus_id)
        machine.await_free_ports()


PROGRAMS = (
    "/etc/qubes-rpc/qubes.USBAttach",
    "/etc/qubes-rpc/qubes.USBDetach",
    "/usr/lib/qubes/usb-export",
    "/usr/lib/qubes/usb-import",
)
LAUNCH = "/usr/lib/qubes/usb-proxy/launch"
TOOL = "/usr/bin/qubes-usb-proxy"
START = """
import json, os, sys, time
null = os.open("/dev/null", os.O_RDWR)
found = []
for _ in range(int(sys.argv[1])):
    for name in sys.argv[2:]:
        command = name.split()
        start = time.monotonic_ns()
        fds = [(os.POSIX_SPAWN_DUP2, null, fd) for fd in range(3)]
        pid = os.posix_spawn(command[0], command, {}, file_actions=fds)
        usage = os.wait4(pid, 0)[2]
        found.append((name, (time.monotonic_ns() - start) / 1e6, usage.ru_maxrss * 1024 / 1e6))
print(json.dumps(found))
"""


def starts(qubes: Qubes, runs: int) -> Iterator[Row]:
    """Programs that start, find that they were not asked for anything, say so, and end.

    And the one that people type.
    """
    typed = [f"{TOOL} status"] if (qubes.root(FRONTEND) / TOOL.lstrip("/")).exists() else []
    inside = ["nsenter", f"--mount=/proc/{qubes.pid(FRONTEND)}/ns/mnt", "/usr/bin/python3", "-IS"]
    output = subprocess.run(
        [*inside, "-c", START, str(runs), *PROGRAMS, *typed], check=True, stdout=subprocess.PIPE
    ).stdout
    found: dict[str, list[float]] = {}
    for path, taken, peak in json.loads(output):
        name = Path(path).name
        found.setdefault(f"start of {name} alone, ms", []).append(taken)
        found.setdefault(f"start of {name} alone, peak MB", []).append(peak)
    if (qubes.root(FRONTEND) / LAUNCH.lstrip("/")).exists():
        for path in PROGRAMS[2:]:
            done = subprocess.run(
                [*inside, "-X", "importtime", LAUNCH, Path(path).name],
                check=False,
                capture_output=True,
            )
            imports = done.stderr.count(b"import time:") - 1  # The first line is the head.
            found[f"start of {Path(path).name} alone, imports"] = [imports]
    yield from found.items()
