# SPDX-License-Identifier: GPL-2.0-or-later
"""State, not edges: what is assigned, free and not let go of is attached, and nothing else."""

from __future__ import annotations

import asyncio
import re
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from qubes.device_protocol import DeviceAssignment, Port, VirtualDevice

from tests.dom0.clock import run
from tests.dom0.world import DESC, INTERFACES, ROOT, World


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.seconds = 0.1
    world.ext.looks.suspending = tmp_path / "suspending"
    return world


def logged(vm: Any) -> str:
    return "\n".join(call.args[0] % call.args[1:] for call in vm.log.warning.call_args_list)


async def attached(world: World) -> None:
    await world.assign(world.work)
    world.plug()
    await asyncio.sleep(1)
    assert world.holder() == "work"


async def held_by_another(world: World) -> None:
    """One qube has it, another has it assigned."""
    world.plug()
    await asyncio.sleep(1)
    await world.assign(world.work)
    await world.attach(world.home)


def end(world: World, reason: bytes | None, *, bounce: bool = False) -> None:
    """A connection ends, and the device stays, or leaves and is back before anybody looks."""
    key = f"{ROOT}/2-1"
    database = world.usb.untrusted_qdb
    database.pop(f"{key}/connected-to", None)
    if reason is not None:
        database[f"{key}/x-ended"] = reason
    if bounce:
        for path in database.list(f"{key}/"):
            del database[path]
        database.update({f"{key}/desc": DESC, f"{key}/interfaces": INTERFACES})
    world.change()


@pytest.mark.parametrize("reason", [b"unplugged", b"died"])
def test_what_nobody_let_go_of_is_attached_again(world: World, reason: bytes) -> None:
    async def story() -> None:
        await attached(world)
        end(world, reason)
        await asyncio.sleep(2)
        assert world.holder() == "work"

    run(story())


@pytest.mark.parametrize("reason", [b"detached", b"Detached\n", None, b"\xff"])
def test_what_was_detached_inside_a_qube_stays_free(world: World, reason: bytes | None) -> None:
    async def story() -> None:
        await attached(world)
        end(world, reason)
        await asyncio.sleep(0.3)
        world.unplug()
        await asyncio.sleep(0.7)  # a bounce
        world.plug()
        await asyncio.sleep(60)
        world.work.fire_event("domain-unpaused")
        await asyncio.sleep(60)
        assert world.holder() is None
        assert ("nobody said why" in logged(world.work)) is (reason != b"detached")
        world.unplug()
        await asyncio.sleep(0.3)
        world.plug()  # it is a replug, a minute later
        await asyncio.sleep(1)
        assert world.holder() == "work"

    run(story())


def test_a_device_that_left_and_came_back_between_two_looks(world: World) -> None:
    """A backend that says why would have said so, had the entries not gone with the device."""

    async def story() -> None:
        key = f"{ROOT}/2-1/x-ended"
        world.before = lambda: world.usb.untrusted_qdb.update({key: b"detached"})
        await attached(world)
        end(world, None, bounce=True)
        await asyncio.sleep(2)
        assert world.holder() == "work"

    run(story())


@pytest.mark.parametrize("gap", [0.02, 0.05, 0.09])
def test_a_short_gap_is_seen(world: World, gap: float) -> None:
    async def story() -> None:
        await attached(world)
        world.unplug()
        await asyncio.sleep(gap)
        world.plug()
        await asyncio.sleep(2)
        assert world.holder() == "work"

    run(story())


def test_a_qube_restarts_while_the_key_still_names_it(world: World) -> None:
    async def story() -> None:
        await attached(world)
        world.usb.untrusted_qdb[f"{ROOT}/2-1/x-pid"] = b"10"
        world.news()
        await world.halt(world.work)
        world.work.state = "Running"
        assert world.holder() is None
        await world.work.fire_event_async("domain-start")
        assert world.holder() == "work"
        await asyncio.sleep(60)
        assert world.holder() == "work"
        assert world.news() == {"detach work sys-usb:2-1": 1, "attach work sys-usb:2-1": 1}

    run(story())


def test_a_first_try_that_fails_while_the_key_stays(world: World) -> None:
    async def story() -> None:
        await world.assign(world.work)
        world.failures = [(6, b"no answer")]
        key = f"{ROOT}/2-1/connected-to"
        world.before = lambda: world.usb.untrusted_qdb.update({key: b"work"})
        world.plug()
        await asyncio.sleep(0.3)
        world.before = lambda: None
        assert world.holder() is None
        await asyncio.sleep(60)
        assert world.holder() == "work"
        assert world.news()["attach work sys-usb:2-1"] == 1

    run(story())


def test_a_qube_that_ends_gives_it_to_the_other(world: World) -> None:
    async def story() -> None:
        await held_by_another(world)
        await world.halt(world.home)
        await asyncio.sleep(1)
        assert world.holder() == "work"

    run(story())


@pytest.mark.parametrize(
    ("told", "seconds", "holder"),
    [
        pytest.param(["pre-shutdown"], 40, "work", id="told to shut down"),
        pytest.param([], 3, "work", id="shut down from inside"),
        pytest.param([], 40, None, id="detached inside, and shut down later"),
        pytest.param(["pre-shutdown", "shutdown-failed"], 40, None, id="detached after a failure"),
    ],
)
def test_a_qube_that_shuts_down_lets_go_of_nothing(
    world: World, told: list[str], seconds: float, holder: str | None
) -> None:
    """Its importer tells the backend to end while the qube still runs."""

    async def story() -> None:
        await held_by_another(world)
        for event in told:
            await world.home.fire_event_async(f"domain-{event}")
        end(world, b"detached")
        await asyncio.sleep(seconds)
        assert world.holder() is None
        await world.halt(world.home)
        await asyncio.sleep(1)
        assert world.holder() == holder

    run(story())


def test_what_the_user_let_go_of_stays_free_when_its_qube_ends(world: World) -> None:
    async def story() -> None:
        await held_by_another(world)
        await world.home.fire_event_async("domain-pre-shutdown", pre_event=True, force=False)
        await world.detach(world.home)
        await asyncio.sleep(3)
        await world.halt(world.home)
        await asyncio.sleep(3)
        assert world.holder() is None

    run(story())


def test_a_disposable_gets_nothing_before_it_is_used(world: World) -> None:
    async def story() -> None:
        preload: Any = world.home
        preload.state, preload.is_preload = "Halted", True
        await world.assign(world.home)
        world.plug()
        await asyncio.sleep(1)
        preload.state = "Running"
        await world.home.fire_event_async("domain-start")
        world.unplug()
        await asyncio.sleep(3)
        world.plug()
        await asyncio.sleep(3)
        await world.home.fire_event_async("domain-unpaused")
        await asyncio.sleep(3)
        assert world.holder() is None
        preload.is_preload = False
        world.home.fire_event("property-reset:is_preload", name="is_preload")
        await asyncio.sleep(1)
        assert world.holder() == "home"

    run(story())


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_retry_respects_the_user(world: World, elsewhere: bool) -> None:
    async def story() -> None:
        await world.assign(world.work)
        world.failures = [(1, b"resetting")]
        world.plug()
        await asyncio.sleep(0.3)
        vm = world.home if elsewhere else world.work
        await world.attach(vm)
        await world.detach(vm)
        await asyncio.sleep(60)
        assert world.holder() is None
        assert not world.ext.assignments._tasks

    run(story())


def test_the_second_detach_counts_as_long_as_the_first(world: World) -> None:
    async def story() -> None:
        await attached(world)
        await world.detach(world.work)
        await asyncio.sleep(4)
        await world.attach(world.work)
        await world.detach(world.work)
        await asyncio.sleep(2)
        world.unplug()
        await asyncio.sleep(0.5)
        world.plug()
        await asyncio.sleep(60)
        assert world.holder() is None

    run(story())


def test_a_replug_right_after_a_detach(world: World) -> None:
    async def story() -> None:
        await attached(world)
        await world.detach(world.work)
        world.unplug()
        await asyncio.sleep(2)
        world.plug()
        await asyncio.sleep(1)
        assert world.holder() == "work"
        await world.detach(world.work)
        world.unplug()
        world.plug(desc=b"dead:beef")  # another device is no bounce
        await asyncio.sleep(1)
        assert world.holder() == "work"

    run(story())


def test_what_was_let_go_of_comes_with_its_qube(world: World) -> None:
    async def story() -> None:
        await attached(world)
        await world.detach(world.work)
        await asyncio.sleep(60)
        await world.home.fire_event_async("domain-start")
        assert world.holder() is None
        await world.halt(world.work)
        world.work.state = "Running"
        await world.work.fire_event_async("domain-start")
        assert world.holder() == "work"

    run(story())


@pytest.mark.parametrize("reason", [b"detached", None])
def test_suspend(world: World, reason: bytes | None) -> None:
    async def story() -> None:
        await attached(world)
        calls = len(world.calls)
        world.ext.looks.suspending.touch()
        end(world, reason)
        await asyncio.sleep(0.2)
        world.unplug()
        await asyncio.sleep(0.5)
        world.plug()
        world.plug("3-1")
        await world.assign(world.work, "3-1")
        await asyncio.sleep(30)
        assert len(world.calls) == calls
        world.work.state = world.usb.state = "Suspended"
        await asyncio.sleep(30)
        world.ext.looks.suspending.unlink()
        for vm in (world.usb, world.work):
            vm.state = "Running"
            vm.fire_event("domain-resumed")
        await asyncio.sleep(2)
        assert (world.holder(), world.holder("3-1")) == ("work", "work")

    run(story())


def test_what_the_backends_user_detaches_from_a_paused_qube(world: World) -> None:
    """It stays free when that goes on."""

    async def story() -> None:
        await attached(world)
        world.work.state = "Paused"
        end(world, b"detached")
        await asyncio.sleep(20)
        world.work.state = "Running"
        world.work.fire_event("domain-unpaused")
        await asyncio.sleep(20)
        assert world.holder() is None

    run(story())


def test_what_was_given_back_is_seen_only_after_suspend(world: World) -> None:
    async def story() -> None:
        await attached(world)
        database = world.usb.untrusted_qdb
        del database[f"{ROOT}/2-1/connected-to"]
        database[f"{ROOT}/2-1/x-ended"] = b"detached"
        world.usb.fire_event("domain-resumed")
        world.work.fire_event("domain-unpaused")
        await asyncio.sleep(2)
        assert world.holder() == "work"

    run(story())


@pytest.mark.parametrize(
    ("code", "said", "tries"),
    [
        (6, b"it said nothing for 15 seconds [UP-616]", 2),
        (126, b"", 1),
        (127, b"", 1),
        (2, b"malformed", 1),
        (1, b"resetting", 7),
    ],
)
def test_tries(world: World, code: int, said: bytes, tries: int) -> None:
    world.failures = [(code, said)] * 99

    async def story() -> None:
        await world.assign(world.work)
        world.plug()
        await asyncio.sleep(600)
        assert len(world.calls) == tries

    run(story())
    reason = "UP-616" if said.endswith(b"]") else "UP-91[1234]"
    assert len(re.findall(rf"\[{reason}\]", logged(world.work))) == 1


async def dies(world: World, seconds: float, times: int) -> None:
    """A connection that dies so soon after each attach."""
    for _ in range(times):
        while not world.holder():
            await asyncio.sleep(0.1)
        await asyncio.sleep(seconds)
        end(world, b"died")


def test_what_dies_at_once_each_time_is_not_tried_for_ever(world: World) -> None:
    async def story() -> None:
        await attached(world)
        dying = asyncio.ensure_future(dies(world, 0.1, 99))
        await asyncio.sleep(5)
        assert len(world.calls) > 2  # the first time at once
        await asyncio.sleep(300)
        assert len(world.calls) == 8
        assert "given up" in logged(world.work)
        dying.cancel()
        world.unplug()
        await asyncio.sleep(1)
        world.plug()
        await dies(world, 0.1, 3)
        assert len(world.calls) >= 11
        await asyncio.sleep(300)
        await world.work.fire_event_async("domain-start")
        await dies(world, 0.1, 3)
        assert len(world.calls) >= 14

    run(story())


def test_what_dies_now_and_then_is_attached_each_time(world: World) -> None:
    async def story() -> None:
        await attached(world)
        await dies(world, 20, 20)
        await asyncio.sleep(1)
        assert (world.holder(), len(world.calls)) == ("work", 21)

    run(story())


def test_what_can_never_work_is_tried_once(world: World) -> None:
    """An assignment that was stored by an older version."""
    device = VirtualDevice(Port(world.usb, "2-1", "usb"), "*")
    stored = DeviceAssignment(device, world.work, {"x": "y"}, mode="auto-attach")
    world.work.devices = {"usb": SimpleNamespace(get_assigned_devices=lambda: [stored])}

    async def story() -> None:
        world.plug()
        await asyncio.sleep(600)

    run(story())
    assert not world.calls
    assert logged(world.work).count("no options such as 'x'") == 1


def test_one_line_for_one_fact(world: World) -> None:
    async def story() -> None:
        world.plug(desc=b"dead:beef")
        await asyncio.sleep(1)
        await world.assign(world.work, "2-1", "1050:0407:0001:u030101u0b0000")
        world.home.untrusted_qdb = None
        for _ in range(3):
            await world.work.fire_event_async("domain-start")
            for vm in world.app.domains:
                if vm.klass != "RemoteVM":
                    list(vm.devices["usb"].get_attached_devices())
                    list(vm.devices["usb"])
            await asyncio.sleep(1)

    run(story())
    assert logged(world.work).count("UP-920") == 1
    assert logged(world.home).count("UP-922") == 1
    assert "NoneType" not in logged(world.home)


@pytest.mark.parametrize("asleep", [False, True])
def test_what_one_qube_let_go_of_is_another_ones_since(world: World, asleep: bool) -> None:
    async def story() -> None:
        await attached(world)
        await world.detach(world.work)
        await world.attach(world.home)
        await world.detach(world.home)
        await world.attach(world.work)
        await asyncio.sleep(20)
        if asleep:
            world.ext.looks.suspending.touch()
        end(world, b"detached" if asleep else b"died")
        await asyncio.sleep(20)
        world.ext.looks.suspending.unlink(missing_ok=True)
        world.work.fire_event("domain-unpaused")
        await asyncio.sleep(20)
        assert world.holder() == "work"

    run(story())


@pytest.mark.parametrize("reason", [b"detached", b"died"])
def test_qubesd_restarts(world: World, reason: bytes) -> None:
    """What the user detached stays free: its backend still says so."""

    async def story() -> None:
        await attached(world)
        end(world, reason)
        world.ext._begin()
        world.ext.looks.suspending = Path("/nowhere")
        loading = threading.Thread(target=world.load)  # no loop runs when qubesd loads
        loading.start()
        loading.join()
        world.work.fire_event("domain-unpaused")
        await asyncio.sleep(5)
        assert world.holder() == (None if reason == b"detached" else "work")

    run(story())


def test_a_suspend_that_failed(world: World) -> None:
    async def story() -> None:
        await world.assign(world.work)
        world.ext.looks.suspending.touch()  # and nobody takes it back
        world.plug()
        await asyncio.sleep(110)
        assert world.holder() is None
        await asyncio.sleep(20)
        assert world.holder() == "work"
        world.plug("3-1")
        await world.assign(world.home, "3-1")
        world.home.fire_event("domain-unpaused")
        await asyncio.sleep(5)
        assert world.holder("3-1") == "home"

    run(story())
    assert logged(world.usb).count("UP-947") == 1


def test_devices_of_which_nothing_is_known_are_not_alike(world: World) -> None:
    """An assignment that was stored by an older version."""
    device = VirtualDevice(Port(world.usb, "*", "usb"), "0000:0000::?******")
    stored = DeviceAssignment(device, world.work, mode="auto-attach")
    world.work.devices = {"usb": SimpleNamespace(get_assigned_devices=lambda: [stored])}

    async def story() -> None:
        world.usb.untrusted_qdb[f"{ROOT}/2-1/desc"] = b"garbage"
        world.change()
        await asyncio.sleep(5)
        assert world.holder() is None

    run(story())
