# SPDX-License-Identifier: GPL-2.0-or-later
"""Each change is told once, whoever made it, and however often it is seen."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from tests.dom0.clock import run
from tests.dom0.world import DESC, ROOT, World
from usb_proxy.errors import sentence

QUIET = 1.0


def test_plugged_and_unplugged(tmp_path: Path) -> None:
    world = World(tmp_path)

    async def story() -> None:
        world.plug()
        world.change()
        await asyncio.sleep(QUIET)
        assert world.news() == Counter(["added sys-usb sys-usb:2-1", "list-change sys-usb"])
        world.unplug()
        await asyncio.sleep(QUIET)
        assert world.news() == Counter(["removed sys-usb sys-usb:2-1", "list-change sys-usb"])

    run(story())


@pytest.mark.parametrize("lag", [0.0, 0.05, 2.0, 20.0])
def test_our_own_call_and_qubesdb_tell_once(tmp_path: Path, lag: float) -> None:
    world = World(tmp_path)
    world.lag = lag

    async def story() -> None:
        world.plug()
        await asyncio.sleep(QUIET)
        world.news()
        await world.attach(world.work)
        assert world.news()["attach work sys-usb:2-1"] == 1
        world.change()
        await asyncio.sleep(60)
        if lag < 3:
            assert not world.news()
        world.news()
        await world.detach(world.work)
        await asyncio.sleep(60)
        assert world.news()["detach work sys-usb:2-1"] == (1 if lag < 3 else 2)

    run(story())


def test_changes_that_others_made(tmp_path: Path) -> None:
    world = World(tmp_path)

    async def story() -> None:
        world.plug()
        world.connect("2-1", "work")
        await asyncio.sleep(QUIET)
        assert world.news()["attach work sys-usb:2-1"] == 1
        world.connect("2-1", "home")
        await asyncio.sleep(QUIET)
        assert world.told == ["detach work sys-usb:2-1", "attach home sys-usb:2-1"]
        world.news()
        world.plug(desc=b"dead:beef")
        world.connect("2-1", None)
        await asyncio.sleep(QUIET)
        assert world.told == [
            "list-change sys-usb",
            "detach home sys-usb:2-1",
            "removed sys-usb sys-usb:2-1",
            "added sys-usb sys-usb:2-1",
            "attach home sys-usb:2-1",
            "detach home sys-usb:2-1",
        ]

    run(story())


@pytest.mark.parametrize(
    ("who", "state"), [("work", "Halted"), ("work", "Crashed"), ("sys-usb", "Halted")]
)
def test_a_qube_ends(tmp_path: Path, who: str, state: str) -> None:
    world = World(tmp_path)

    async def story() -> None:
        world.plug()
        world.plug("3-1")
        await world.attach(world.work)
        await asyncio.sleep(QUIET)
        world.news()
        await world.halt(world.app.domains[who], state)
        told = world.news()
        assert told.pop("detach work sys-usb:2-1") == 1
        if who == "sys-usb":
            assert told.pop("removed sys-usb sys-usb:2-1") == 1
            assert told.pop("removed sys-usb sys-usb:3-1") == 1
            assert told.pop("list-change sys-usb") == 1
        assert not told
        world.connect("2-1", None)
        await asyncio.sleep(60)
        assert not world.news()

    run(story())


def test_a_qube_is_killed_while_a_device_is_attached_to_it(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.seconds = 5

    async def story() -> None:
        world.plug()
        world.failures = [(1, b"gone")]
        task = asyncio.ensure_future(world.attach(world.work))
        await asyncio.sleep(QUIET)
        world.news()
        await world.halt(world.work)
        with pytest.raises(Exception, match="work: gone"):
            await task
        await asyncio.sleep(60)
        assert not world.news()

    run(story())


def test_qubesd_restarts_with_a_device_attached(tmp_path: Path) -> None:
    world = World(tmp_path)

    async def before() -> None:
        world.plug()
        await world.attach(world.work)

    async def after() -> None:
        world.load()
        world.change()
        await asyncio.sleep(QUIET)
        assert not world.news()
        await world.detach(world.work)
        await asyncio.sleep(60)
        assert world.news() == Counter(["detach work sys-usb:2-1"])

    run(before())
    world.news()
    world.ext.__init__()  # type: ignore[misc]
    run(after())


@pytest.mark.parametrize("way", ["free", "let go of", "halted", "another's"])
def test_qubesd_restarts_with_an_assigned_device_that_is_free(tmp_path: Path, way: str) -> None:
    """It came meanwhile, or the user detached it where the backend does not say so: a line says."""
    world = World(tmp_path)

    async def story() -> None:
        await world.assign(world.home if way == "another's" else world.work)
        world.usb.untrusted_qdb[f"{ROOT}/2-1/desc"] = DESC
        if way == "let go of":
            world.usb.untrusted_qdb[f"{ROOT}/2-1/x-ended"] = b"detached"
        world.work.state = "Halted" if way == "halted" else "Running"
        world.load()
        await asyncio.sleep(60)
        assert not world.calls

    run(story())
    lines = [call.args[1] for call in world.work.log.warning.call_args_list]
    text = sentence("UP-948", port="sys-usb:2-1", qube="work")
    assert lines == ([text] if way == "free" else [])


def test_a_handler_of_another_extension_fails(tmp_path: Path) -> None:
    world = World(tmp_path)

    def fails(_vm: object, _event: str, **_kwargs: object) -> None:
        raise RuntimeError("not ours")

    world.usb.add_handler("device-added:usb", fails)
    world.work.add_handler("device-detach:usb", fails)

    async def story() -> None:
        world.usb.untrusted_qdb[f"{ROOT}/2-1/connected-to"] = b"work"
        world.plug()
        await asyncio.sleep(QUIET)
        world.unplug()
        await asyncio.sleep(QUIET)
        told = world.news()
        assert told["attach work sys-usb:2-1"] == told["removed sys-usb sys-usb:2-1"] == 1

    run(story())


def test_another_extension_objects_after_the_device_was_attached(tmp_path: Path) -> None:
    world = World(tmp_path)

    async def objects(_vm: object, _event: str, **_kwargs: object) -> None:
        raise RuntimeError("objection")

    world.work.add_handler("device-pre-attach:usb", objects)

    async def story() -> None:
        world.plug()
        with pytest.raises(RuntimeError, match="objection"):
            await world.attach(world.work)
        await asyncio.sleep(60)
        assert world.news()["attach work sys-usb:2-1"] == 1

    run(story())


def test_events_of_a_port_do_not_overtake_each_other(tmp_path: Path) -> None:
    world = World(tmp_path)

    async def slow(_vm: object, _event: str, **_kwargs: object) -> None:
        await asyncio.sleep(5)
        world.told.append("slow one done")

    world.work.add_handler("device-detach:usb", slow)

    async def story() -> None:
        world.plug()
        world.connect("2-1", "work")
        await asyncio.sleep(QUIET)
        world.news()
        for name in (None, "home"):
            world.connect("2-1", name)
            await asyncio.sleep(QUIET)
        await asyncio.sleep(10)
        expected = ["detach work sys-usb:2-1", "slow one done", "attach home sys-usb:2-1"]
        assert world.told == expected

    run(story())


def test_removed_qubes_leave_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.ext.on_domain_delete(world.app, "domain-delete", vm=world.home)
    assert "home" not in world.ext.attachments._known
