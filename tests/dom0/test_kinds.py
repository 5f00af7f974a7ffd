# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices that a qube gets for what they are."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.dom0.clock import run
from tests.dom0.world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.seconds = 0.1
    return world


def wants(vm: Any, value: str, denied: str = "") -> None:
    vm.features.check_with_template = lambda feature, default: (
        value if feature == "usb-auto-attach" else default
    )
    vm.devices_denied = denied


def logged(vm: Any) -> str:
    return "\n".join(call.args[0] % call.args[1:] for call in vm.log.warning.call_args_list)


@pytest.mark.parametrize(
    ("value", "holder"),
    [
        ("u0301**", "work"),
        ("u0b****", "work"),
        ("u0701**, u03****", "work"),
        ("U0B0000", "work"),
        ("u******", "work"),
        ("u07****", None),
        ("u030102", None),
        ("030101", None),
        ("p03****", None),
        ("u03?1**", None),
        ("", None),
    ],
)
def test_patterns(world: World, value: str, holder: str | None) -> None:
    async def story() -> None:
        wants(world.work, value)
        world.plug()
        await asyncio.sleep(1)
        assert world.holder() == holder

    run(story())


@pytest.mark.parametrize("value", ["u0301**,u030", "nonsense", "u03****,,", "x" * 5000])
def test_a_malformed_pattern_is_told_once_and_hides_no_other(world: World, value: str) -> None:
    async def story() -> None:
        wants(world.work, value)
        for port in ("2-1", "3-1", "4-1"):
            world.plug(port)
        await asyncio.sleep(1)
        assert world.holder() == ("work" if value.startswith("u03") else None)
        assert logged(world.work).count("UP-932") == 1

    run(story())


def test_the_denied_list_counts_before_it(world: World) -> None:
    async def story() -> None:
        wants(world.work, "u03****", denied="u02****u0b****")
        world.plug()
        await asyncio.sleep(1)
        assert world.holder() is None
        assert "UP-931" in logged(world.work)

    run(story())


def test_what_is_assigned_is_not_told_as_denied(world: World) -> None:
    """The feature is denied the device, and the assignment is not: it is attached."""

    async def story() -> None:
        wants(world.work, "u03****", denied="u0b****")
        await world.assign(world.work)
        world.plug()
        await asyncio.sleep(1)
        assert world.holder() == "work"
        assert "UP-931" not in logged(world.work)

    run(story())


@pytest.mark.parametrize("answer", ["work", ""])
def test_asking(world: World, answer: str) -> None:
    world.answer = answer

    async def story() -> None:
        wants(world.work, "ask:u0701**,u03****")
        world.plug()
        await asyncio.sleep(10)
        assert (world.asked, world.holder()) == ([["work"]], answer or None)

    run(story())


def test_an_assignment_counts_before_it_and_a_conflict_is_asked(world: World) -> None:
    world.answer = "home"

    async def story() -> None:
        wants(world.work, "ask:u03****")
        await world.assign(world.work)
        world.plug()
        await asyncio.sleep(1)
        assert (world.asked, world.holder()) == ([], "work")
        wants(world.home, "u03****")
        world.plug("3-1")
        await asyncio.sleep(10)
        assert world.holder("3-1") == "home"
        world.unplug()
        await asyncio.sleep(10)
        world.plug()
        await asyncio.sleep(10)
        assert (world.asked, world.holder()) == ([["home", "work"]] * 2, "home")

    run(story())


def test_a_qube_starts(world: World) -> None:
    async def story() -> None:
        world.plug()
        await asyncio.sleep(1)
        wants(world.work, "u03****")
        await world.work.fire_event_async("domain-start")
        assert world.holder() == "work"

    run(story())


def test_one_line_for_one_fact(world: World) -> None:
    """None of a qube that does not run, and no more for a device that comes again and again."""

    async def story() -> None:
        for vm in (world.work, world.home):
            wants(vm, "u03****,nonsense", denied="u0b****")
        world.home.state = "Halted"
        for _ in range(5):
            world.plug()
            await asyncio.sleep(1)
            world.work.fire_event("domain-unpaused")
            await asyncio.sleep(1)
            world.unplug()
            await asyncio.sleep(1)

    run(story())
    assert (logged(world.work).count("UP-931"), logged(world.work).count("UP-932")) == (1, 1)
    assert logged(world.home) == ""
