# SPDX-License-Identifier: GPL-2.0-or-later
"""What the extension asks of libvirt and QubesDB, and how long it holds qubesd's loop."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

from tests.dom0.clock import run
from tests.dom0.world import ROOT, Qube, QubesDB, World
from usb_proxy.dom0 import untrusted

QUBES = (10, 80, 150)
DEVICES = 12
LIBVIRT_SECONDS = 0.0002
"""About what one call to libvirt takes, and more than one to QubesDB does."""
QUBESDB_SECONDS = 0.00003

INTERFACES = b":" + b"".join(b"%06x:" % (0x0E0100 + n) for n in range(438))
"""As many as fit into one key of QubesDB."""


class Counted(QubesDB):
    """A QubesDB whose calls are counted."""

    def __init__(self, calls: Calls) -> None:
        super().__init__()
        self.calls = calls

    def read(self, path: str) -> bytes | None:
        """Read one key."""
        self.calls.spend("qubesdb", QUBESDB_SECONDS)
        return super().read(path)

    def list(self, prefix: str) -> list[str]:
        """List keys."""
        self.calls.spend("qubesdb", QUBESDB_SECONDS)
        return super().list(prefix)


class Calls(Counter[str]):
    """Calls by what they go to; each takes its time where that is wanted."""

    slow = False

    def spend(self, what: str, seconds: float) -> None:
        """Count a call."""
        self[what] += 1
        end = time.thread_time() + seconds
        while self.slow and time.thread_time() < end:
            pass

    def take(self) -> tuple[int, int]:
        """The numbers of calls to libvirt and to QubesDB since this was asked last."""
        taken = self["libvirt"], self["qubesdb"]
        self.clear()
        return taken


def machine(folder: Path, qubes: int) -> tuple[World, Calls]:
    """A machine with so many qubes, half of them running, whose calls are counted."""
    calls = Calls()
    world = World(folder)
    for number in range(qubes - len(world.app.domains)):
        Qube(world, f"qube{number}").state = "Running" if number % 2 else "Halted"
    for vm in world.app.domains:
        vm.untrusted_qdb = Counted(calls)
        for name in ("is_running", "is_halted", "get_power_state"):
            counted(calls, vm, name)
    world.seconds = 0
    return world, calls


def counted(calls: Calls, vm: Any, name: str) -> None:
    """Count the calls of a method that asks libvirt."""
    real: Callable[[], Any] = getattr(vm, name)

    def call() -> Any:
        calls.spend("libvirt", LIBVIRT_SECONDS)
        return real()

    setattr(vm, name, call)


def expose(world: World, vm: Any, devices: int, interfaces: bytes, desc: bytes) -> None:
    """Let a qube have so many devices, and tell dom0 of all at once."""
    for number in range(devices):
        key = f"{ROOT}/{number // 15 + 1}-{number % 15 + 1}"
        vm.untrusted_qdb.update({f"{key}/desc": desc, f"{key}/interfaces": interfaces})
    world.change(vm)


def counts(folder: Path, qubes: int) -> dict[str, tuple[int, int]]:
    """Calls to libvirt and QubesDB of what happens every day, with 12 devices."""
    world, calls = machine(folder, qubes)
    found = {}

    async def story() -> None:
        calls.take()
        expose(world, world.usb, DEVICES, b":030101:", b"1050:0407 a b c")
        await asyncio.sleep(5)
        found["appear"] = calls.take()
        world.change()
        await asyncio.sleep(5)
        found["look"] = calls.take()
        for vm in world.app.domains:
            if vm.klass != "RemoteVM":
                list(vm.devices["usb"].get_attached_devices())
                await asyncio.sleep(0.001)
        list(world.usb.devices["usb"])
        found["list"] = calls.take()
        for vm in world.app.domains:
            if vm.klass != "RemoteVM":
                world.change(world.home)
                list(vm.devices["usb"].get_attached_devices())
                await asyncio.sleep(0.001)
        found["list beside one that writes"] = calls.take()
        await world.assign(world.work, "1-1")
        calls.take()
        await world.work.fire_event_async("domain-start")
        await asyncio.sleep(5)
        found["start"] = calls.take()

    run(story())
    return found


class Witness(asyncio.SelectorEventLoop):
    """A loop that notes for how long at a time it did not look at what else there is to do.

    Its clock has the time that its own thread has worked, in which others of this machine have no
    part, and jumps to the next timer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.longest = self.busy = 0.0
        self._jumped = self._elsewhere = 0.0
        selector: Any = self._selector  # type: ignore[attr-defined]
        select = selector.select
        awake = self.time()

        def jump(timeout: float | None) -> Any:
            nonlocal awake
            held = self.time() - awake
            self.longest = max(self.longest, held)
            self.busy += held
            self._jumped += max(timeout or 0.0, 0.0)
            found = select(0)
            awake = self.time()
            return found

        selector.select = jump

    def time(self) -> float:
        """Seconds since some moment."""
        return time.thread_time() + self._jumped - self._elsewhere

    @contextlib.contextmanager
    def elsewhere(self) -> Iterator[None]:
        """What is done here is done by a qube, and costs qubesd nothing."""
        started = time.thread_time()
        yield
        self._elsewhere += time.thread_time() - started


def held(main: Callable[[], Coroutine[Any, Any, None]], seconds: float) -> tuple[float, float]:
    """The longest time in seconds that the loop was held, and the share of all, for a while."""

    async def story() -> None:
        task = asyncio.ensure_future(main())
        await asyncio.sleep(seconds)
        task.cancel()

    with asyncio.Runner(loop_factory=Witness) as runner:
        runner.run(story())
        loop: Any = runner.get_loop()
        return loop.longest, loop.busy / seconds


def hostile(folder: Path, qubes: int, seconds: float, *, wanted: bool) -> tuple[float, float]:
    """256 devices with 438 interfaces each, that change at once, again and again.

    Where they are `wanted`, whatever it is that such a qube shows is assigned to another.
    """
    world, calls = machine(folder, qubes)
    calls.slow = True

    async def story() -> None:
        loop: Any = asyncio.get_running_loop()
        if wanted:
            await world.assign(world.work, "*")
        names = [vm.name.encode() for vm in world.app.domains]
        for number in itertools.count():
            for quarter in range(4):
                with loop.elsewhere():
                    for port in range(64 * quarter, 64 * quarter + 64):
                        key = f"{ROOT}/{port // 15 + 1}-{port % 15 + 1}"
                        claim = names[(port + number) % len(names)] if number % 2 else b""
                        world.usb.untrusted_qdb |= {
                            f"{key}/desc": b"%04x:0407 a b c" % (number % 65536),
                            f"{key}/interfaces": INTERFACES,
                            f"{key}/connected-to": claim,
                        }
                await asyncio.sleep(0.01)
            world.change()

    return held(story, seconds)


ESCAPED = b" ".join([rb"\x41" * 250] * 3)
"""What costs most of all that fits into a value."""


def listing(folder: Path) -> tuple[float, float, int]:
    """Seconds of qubesd for one list of such a qube, and for the next one of the same devices.

    And the calls to libvirt that one takes.

    Handlers of lists cannot take turns. It is the best of three: other programs run, too.
    """
    world, calls = machine(folder, 10)

    for number in range(256):
        key = f"{ROOT}/{number // 15 + 1}-{number % 15 + 1}"
        world.usb.untrusted_qdb[f"{key}/desc"] = b"1050:%04x %b" % (number, ESCAPED)
        world.usb.untrusted_qdb[f"{key}/interfaces"] = b":%06x%b" % (number, INTERFACES)
        world.usb.untrusted_qdb[f"{key}/connected-to"] = b"work"

    def seconds() -> float:
        started = time.thread_time()
        for device in world.usb.devices["usb"]:
            assert device.device_id
            assert device.interfaces
            assert device.attachment
            assert device.attachment == world.work
        return time.thread_time() - started

    found = []
    for _ in range(3):
        untrusted._description.cache_clear()
        untrusted._interfaces.cache_clear()
        found.append((seconds(), seconds()))
    libvirt, _ = calls.take()
    return min(first for first, _ in found), min(second for _, second in found), libvirt // 6
