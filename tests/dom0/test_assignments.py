# SPDX-License-Identifier: GPL-2.0-or-later
"""What is assigned is attached by itself: to the right qube, again and again, one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from qubes.device_protocol import DeviceAssignment, Port, VirtualDevice

from tests.dom0.clock import run
from tests.dom0.world import DEVICE_ID, World, listener
from usb_proxy.dom0 import questions
from usb_proxy.dom0.assignments import assigned
from usb_proxy.dom0.tries import PAUSES


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.seconds = 0.1
    return world


def attaches(world: World) -> list[str]:
    return [call for call in world.calls if "Attach" in call]


def logged(vm: Any) -> str:
    return "\n".join(call.args[0] % call.args[1:] for call in vm.log.warning.call_args_list)


def test_a_device_appears(world: World) -> None:
    async def story() -> None:
        await world.assign(world.work)
        world.plug("3-1")
        world.plug()
        await asyncio.sleep(1)
        assert (world.holder(), world.holder("3-1")) == ("work", None)
        assert world.news()["attach work sys-usb:2-1"] == 1
        await world.detach(world.work)
        await asyncio.sleep(60)
        assert world.holder() is None
        world.unplug()
        world.plug()
        await asyncio.sleep(1)
        assert world.holder() == "work"
        await world.detach(world.work)
        for _ in range(2):  # a device that leaves the bus when it is given back
            world.unplug()
            await asyncio.sleep(1)
            world.plug()
        await asyncio.sleep(60)
        assert world.holder() is None

    run(story())


def test_a_qube_starts(world: World) -> None:
    async def story() -> None:
        for port in ("2-1", "3-1", "4-1"):
            world.plug(port)
        await asyncio.sleep(1)
        await world.assign(world.work)
        await world.assign(world.work, "*", DEVICE_ID)
        await world.assign(world.home, "4-1")
        world.failures = [(1, b"broken")]
        await world.work.fire_event_async("domain-start")
        # Each was tried once when the start is done, and the one that failed is tried again.
        assert sorted(attaches(world)) == [
            f"work qubes.USBAttach sys-usb {port}" for port in ("2-1", "3-1", "4-1")
        ]
        await asyncio.sleep(60)

    run(story())
    assert [world.holder(port) for port in ("2-1", "3-1", "4-1")] == ["work", "work", "work"]
    assert world.asked == []


def test_what_the_user_detached_stays_so_when_another_qube_starts(world: World) -> None:
    async def story() -> None:
        await world.assign(world.work)
        await world.assign(world.home, "3-1")
        for port in ("2-1", "3-1"):
            world.plug(port)
        await asyncio.sleep(1)
        await world.detach(world.work)
        await world.home.fire_event_async("domain-start")
        await asyncio.sleep(60)
        assert (world.holder(), world.holder("3-1")) == (None, "home")

    run(story())


def test_a_start_waits_for_no_answer_of_the_user(world: World) -> None:
    async def story() -> None:
        await world.assign(world.work, mode="ask-to-attach")
        world.plug()
        await asyncio.sleep(60)
        assert world.asked == [["work"]]
        world.answer = "work"
        await world.work.fire_event_async("domain-start")
        assert asyncio.get_running_loop().time() < 60.5
        await asyncio.sleep(10)
        assert (world.asked, world.holder()) == ([["work"]] * 2, "work")

    run(story())


def test_suspend_and_resume(world: World) -> None:
    """Everything is detached; what comes back late or fails at first is attached in the end."""

    async def story() -> None:
        for port in ("2-1", "3-1", "4-1"):
            await world.assign(world.work, port)
            world.plug(port)
        await asyncio.sleep(1)
        world.work.state = world.usb.state = "Suspended"
        for port in ("2-1", "3-1"):
            world.connect(port, None)
        world.unplug("4-1")
        await asyncio.sleep(1)
        assert world.news()["detach work sys-usb:4-1"] == 1
        world.work.state = "Running"
        world.work.fire_event("domain-unpaused")
        await asyncio.sleep(0.7)
        world.usb.state = "Running"
        world.failures = [(4, b"still resetting")] * 3
        world.usb.fire_event("domain-resumed")
        await asyncio.sleep(3)
        world.plug("4-1")
        await asyncio.sleep(60)
        assert [world.holder(port) for port in ("2-1", "3-1", "4-1")] == ["work"] * 3
        assert {n for name, n in world.news().items() if "attach" in name} == {1}

    run(story())


def test_a_qube_that_is_not_ready_is_left_alone(world: World) -> None:
    async def story() -> None:
        world.plug()
        await asyncio.sleep(1)
        await world.assign(world.work)
        world.work.state = "Transient"
        world.work.fire_event("domain-unpaused")
        await asyncio.sleep(60)
        assert world.calls == []

    run(story())


def test_the_most_specific_wins(world: World) -> None:
    async def story() -> None:
        world.plug()
        device = world.device()
        for port, device_id in (("*", DEVICE_ID), ("2-1", "*"), ("2-1", DEVICE_ID)):
            await world.assign(world.work, port, device_id)
            found: Any = assigned(world.work, device)
            assert (found.port_id, found.device_id) == (port, device_id)
        await world.assign(world.work, "2-1", "dead:beef::u000000")
        assert assigned(world.work, device).device_id == DEVICE_ID  # type: ignore[union-attr]

    run(story())


def test_a_device_that_is_not_the_assigned_one(world: World) -> None:
    async def story() -> None:
        await world.assign(world.work, "2-1", DEVICE_ID)
        await world.assign(world.home, "3-1")
        world.plug(desc=b"dead:beef")
        world.plug("3-1")
        await asyncio.sleep(60)

    run(story())
    assert attaches(world) == ["home qubes.USBAttach sys-usb 3-1"]
    assert "is not the one that is assigned to work (1050:0407" in logged(world.work)


@pytest.mark.parametrize("answer", ["home", "work", "", "sys-usb", "dom0"])
def test_a_conflict(world: World, answer: str) -> None:
    world.answer = answer

    async def story() -> None:
        await world.assign(world.work)
        await world.assign(world.home, "*", DEVICE_ID)
        world.plug("3-1")
        world.plug()
        await asyncio.sleep(60)

    run(story())
    assert world.asked == [["home", "work"]]
    assert world.holder() == (answer if answer in ("home", "work") else None)
    assert world.holder("3-1") == "home"


def test_one_failure_takes_no_other_down(world: World) -> None:
    def broken(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("libvirt is away")

    async def story() -> None:
        ports = [f"{bus}-1" for bus in range(1, 20)]
        for port in ports:
            await world.assign(world.work, port)
        world.home.devices = {"usb": type("Broken", (), {"get_assigned_devices": broken})}
        world.failures = [(code, b"no") for code in (1, 2, 3, 126, 127, 4, 1)]
        for port in ports:
            world.plug(port)
        await asyncio.sleep(60)
        free = [port for port in ports if world.holder(port) is None]
        assert len(free) == 3  # those for which it was hopeless

    run(story())
    assert "libvirt is away" in logged(world.home)
    assert not world.allowed()


def test_pauses_grow_and_end(world: World) -> None:
    times = []
    world.before = lambda: times.append(asyncio.get_running_loop().time())
    world.failures = [(1, b"resetting")] * 99

    async def story() -> None:
        await world.assign(world.work)
        world.plug()
        await asyncio.sleep(600)

    run(story())
    pauses = [round(b - a - world.seconds, 3) for a, b in pairwise(times)]
    assert pauses == list(PAUSES)
    assert sum(PAUSES) < 60
    assert "given up" in logged(world.work)
    assert "work: resetting" in logged(world.work)
    assert not world.ext.assignments._tasks


async def _unassign(world: World) -> None:
    (assignment,) = world.work.devices["usb"].get_assigned_devices()
    await world.work.devices["usb"].unassign(assignment)


@pytest.mark.parametrize("device_id", ["*", DEVICE_ID])
@pytest.mark.parametrize(
    "event",
    [
        lambda world: world.unplug(),
        lambda world: world.connect("2-1", "home"),
        lambda world: asyncio.ensure_future(_unassign(world)),
        lambda world: setattr(world.work, "state", "Halted"),
    ],
    ids=["unplugged", "attached elsewhere", "unassigned", "halted"],
)
def test_a_retry_stops(world: World, event: Callable[[World], object], device_id: str) -> None:
    async def story() -> None:
        await world.assign(world.work, "2-1", device_id)
        world.failures = [(1, b"resetting")] * 99
        world.plug()
        await asyncio.sleep(1)
        before = len(world.calls)
        event(world)
        await asyncio.sleep(6)
        assert not world.ext.assignments._chains
        assert len(world.calls) == before

    run(story())


def test_no_question_about_a_device_that_was_attached_meanwhile(world: World) -> None:
    async def story() -> None:
        await world.assign(world.work, mode="ask-to-attach")
        world.plug()
        await asyncio.sleep(1)
        world.unplug()
        await asyncio.sleep(1)
        world.plug()
        await world.attach(world.home)
        await asyncio.sleep(60)
        assert (world.asked, world.holder()) == ([["work"]], "home")

    run(story())


def test_a_device_that_comes_back_starts_anew(world: World) -> None:
    async def story() -> None:
        await world.assign(world.work)
        world.failures = [(1, b"resetting")] * 6
        world.plug()
        await asyncio.sleep(20)
        world.unplug()
        await asyncio.sleep(0.2)
        world.failures = [(1, b"resetting")] * 2
        world.plug(desc=b"dead:beef")
        await asyncio.sleep(3)
        assert world.holder() == "work"

    run(story())


@pytest.mark.parametrize(("option", "marks"), [("x", "UP-902"), ("100%s", "'100%s'")])
def test_what_is_stored_and_can_never_be_attached(world: World, option: str, marks: str) -> None:
    """It was assigned before anybody refused it: it is never tried, and told once."""

    async def story() -> None:
        device = VirtualDevice(Port(world.usb, "2-1", "usb"), "*")
        stored = DeviceAssignment(device, world.work, {option: "y"}, mode="auto-attach")
        world.work.events_enabled = False  # as when qubesd reads qubes.xml
        world.work.devices["usb"].load_assignment(stored)
        world.work.events_enabled = True
        world.load()
        for _ in range(3):
            world.plug()
            await asyncio.sleep(60)
            await world.work.fire_event_async("domain-start", start_guid=None)
            world.unplug()
            await asyncio.sleep(60)

    run(story())
    assert not world.calls
    assert logged(world.work).count("is not attached to work") == 1
    assert marks in logged(world.work)


@pytest.mark.parametrize("rival", [False, True])
def test_a_no_counts_until_the_device_comes_again(world: World, rival: bool) -> None:
    async def story() -> None:
        await world.assign(world.work, mode="auto-attach" if rival else "ask-to-attach")
        if rival:
            await world.assign(world.home)
        world.plug()
        await asyncio.sleep(10)
        await world.halt(world.home)
        for _ in range(3):
            world.work.fire_event("domain-unpaused")
            await asyncio.sleep(10)
        assert (len(world.asked), world.holder()) == (1, None)

    run(story())


def test_one_that_the_user_wants_in_none_is_asked_for_when_it_is_plugged_in_again(
    world: World,
) -> None:
    """However soon: it was given back by nobody, so it does not bounce."""

    async def story() -> None:
        await world.assign(world.work, mode="ask-to-attach")
        world.plug()
        await asyncio.sleep(6)
        world.answer = "work"
        world.unplug()
        await asyncio.sleep(0.3)
        world.plug()
        await asyncio.sleep(10)
        assert (len(world.asked), world.holder()) == (2, "work")

    run(story())


def test_no_question_about_what_the_user_detached(world: World) -> None:
    world.answer = "work"

    async def story() -> None:
        await world.assign(world.work, mode="ask-to-attach")
        world.plug()
        await asyncio.sleep(10)
        await world.detach(world.work)
        await asyncio.sleep(30)
        world.work.fire_event("domain-unpaused")
        await asyncio.sleep(30)
        assert (len(world.asked), world.holder()) == (1, None)

    run(story())


def test_a_qube_that_starts_waits_for_no_question_about_another(world: World) -> None:
    async def confirm(*_arguments: object) -> str:
        await asyncio.sleep(3600)
        return "work"

    world.ext.assignments.confirm = confirm

    async def story() -> None:
        await world.assign(world.work, mode="ask-to-attach")
        world.plug()
        await asyncio.sleep(10)
        await world.halt(world.home)
        world.home.state = "Running"
        await world.assign(world.home)
        await world.home.fire_event_async("domain-start")
        await asyncio.sleep(10)
        assert world.holder() == "home"

    run(story())


@pytest.mark.parametrize("has_logged_out", [False, True])
def test_nobody_to_be_asked_is_no_answer(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_logged_out: bool
) -> None:
    """Before a login, or after a logout, which leaves the socket: a line says so.

    Whatever leads to it later asks.
    """
    path = tmp_path / "agent"
    monkeypatch.setattr(questions, "AGENT", str(path))
    monkeypatch.setattr(questions, "confirm_device_attachment", world.confirm)
    world.ext.assignments.confirm = questions.ask
    world.answer = "work"

    async def story() -> None:
        await world.assign(world.work, mode="ask-to-attach")
        if has_logged_out:
            listener(path).close()
        world.plug()
        await asyncio.sleep(10)
        assert (world.asked, world.holder()) == ([], None)
        (line,) = world.usb.log.warning.call_args_list
        assert line.args[1].endswith("[UP-949]")
        with listener(path):
            world.work.fire_event("domain-unpaused")
            await asyncio.sleep(10)
        assert (world.asked, world.holder()) == ([["work"]], "work")

    run(story())
