# SPDX-License-Identifier: GPL-2.0-or-later
"""A backend that rewrites its entries thousands of times while qubes attach and detach."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from tests.dom0.clock import run
from tests.dom0.world import DESC, ROOT, QubesDB, World
from usb_proxy.dom0.qubesd import QubesException

WRITES = 5000
KEYS = ["2-1", "3-1", "1-1_4", "..", "2-1/desc", "\xff\x00", "1-1.4", "x" * 200, ""]
ENTRIES = ["desc", "interfaces", "connected-to", "x-pid", "usb-ver", "evil", ""]
VALUES = [
    b"",
    DESC,
    b"\xff" * 3000,
    b":030101:",
    b":" * 3000,
    b"1050:0407 %s \\x0a \x1b[0m",
    *(b"work", b"home", b"dom0", b"sys-usb", b"far", b"work\n", b"nobody"),
]


@pytest.mark.parametrize("seed", range(3))
def test_it_harms_nobody_but_itself(tmp_path: Path, seed: int) -> None:
    world = World(tmp_path)
    world.seconds = 0.02
    chance = random.Random(seed)
    failures: list[BaseException] = []

    async def rewrite() -> None:
        database = world.usb.untrusted_qdb
        for number in range(WRITES):
            path = f"{ROOT}/{chance.choice(KEYS)}/{chance.choice(ENTRIES)}"
            if chance.random() < 0.3:
                database.pop(path, None)
            else:
                database[path] = chance.choice(VALUES)
            world.change()
            if number % 5 == 0:
                await asyncio.sleep(0.005)

    async def use(vm: str, task: asyncio.Future[None]) -> None:
        while not task.done():
            action = world.attach if chance.random() < 0.6 else world.detach
            try:
                await action(world.app.domains[vm], chance.choice(["2-1", "3-1", "1-1.4"]))
            except (QubesException, AssertionError):
                await asyncio.sleep(0.01)  # refused, or gone: ProtocolError is an AssertionError
            except Exception as error:
                failures.append(error)

    async def story() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda _loop, context: failures.append(context.get("exception") or KeyError(context))
        )
        await world.assign(world.work, "2-1")
        await world.assign(world.home, "1-1.4")
        world.plug("5-1", vm=world.home)
        writing = asyncio.ensure_future(rewrite())
        await asyncio.gather(writing, use("work", writing), use("home", writing))
        assert [str(d.port) for d in world.home.devices["usb"]] == ["home:5-1"]
        world.usb.untrusted_qdb.clear()
        await asyncio.sleep(120)
        world.change()
        await asyncio.sleep(120)

    run(story())
    assert not failures
    assert not world.allowed()
    state = world.ext.attachments
    assert not state._held
    assert not state._waiting
    assert not world.ext.assignments._tasks
    assert balanced(world)


def balanced(world: World) -> bool:
    """Each device that came went again, and each that was attached was detached."""
    told = world.news()
    pairs = [
        (f"{start} {vm} sys-usb:{port}", f"{end} {vm} sys-usb:{port}")
        for port in ("2-1", "3-1", "1-1.4")
        for start, end, vm in (
            ("added", "removed", "sys-usb"),
            ("attach", "detach", "work"),
            ("attach", "detach", "home"),
        )
    ]
    return all(told[start] == told[end] > 0 for start, end in pairs)


def test_a_flood_is_looked_at_ten_times_a_second(tmp_path: Path) -> None:
    world = World(tmp_path)
    looks = 0
    listed = world.usb.untrusted_qdb.list

    def count(prefix: str) -> list[str]:
        nonlocal looks
        looks += 1
        found: list[str] = listed(prefix)
        return found

    world.usb.untrusted_qdb.list = count

    async def story() -> None:
        for _ in range(1000):
            world.change()
            await asyncio.sleep(0.001)

    run(story())
    assert looks <= 12


@pytest.mark.parametrize("seconds", [0.01, 1.0, 30.0])
def test_a_slow_qube_keeps_no_other_waiting(tmp_path: Path, seconds: float) -> None:
    """What another one shows is told while it rests; and it is still looked at itself."""
    world = World(tmp_path)
    told: dict[str, float] = {}

    class Slow(QubesDB):
        def read(self, path: str) -> bytes | None:
            loop: Any = asyncio.get_running_loop()
            loop.now += seconds
            return super().read(path)

    world.usb.untrusted_qdb = Slow()

    def note(vm: Any, _event: str, device: Any) -> None:
        told[str(device.port)] = asyncio.get_running_loop().time()

    async def story() -> None:
        clock = asyncio.get_running_loop().time
        for vm in (world.usb, world.home):
            vm.add_handler("device-added:usb", note)
        for number in range(4):
            world.plug(f"1-{number + 1}")
        await asyncio.sleep(0)
        started = clock()
        world.plug("5-1", vm=world.home)
        while "home:5-1" not in told:
            await asyncio.sleep(0.01)
        # It is between two turns of the slow one, or in one of them.
        assert told["home:5-1"] - started <= 4 * seconds + 1
        await asyncio.sleep(12 * (3 * seconds + 10))
        assert {f"sys-usb:1-{number + 1}" for number in range(4)} <= told.keys()

    run(story())
