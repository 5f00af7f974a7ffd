# SPDX-License-Identifier: GPL-2.0-or-later
"""The platform's tests make a machine for each test, and fail where something keeps one."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path

from tests.dom0.clock import run
from tests.dom0.world import World


async def busy_world(folder: Path) -> weakref.ref[World]:
    """A machine that was closed after all that may be remembered has happened."""
    world = World(folder)
    for port in ("2-1", "2-2", "2-3"):
        world.plug(port)
    await asyncio.sleep(1)
    await world.assign(world.home, "2-3", device_id="dead:beef::u000000")
    world.ext.assignments.tell_mismatch(world.home, world.device("2-3"))
    for port in ("2-1", "2-2"):
        await world.attach(world.work, port)
    await world.detach(world.work)
    # A request whose end another extension never lets be told.
    device = world.device()
    await world.work.fire_event_async("device-pre-attach:usb", True, device=device, options={})
    world.ext.assignments.postponed[device.port] = device
    assert list(world.work.devices["usb"].get_attached_devices())
    world.ext.on_qubes_close(world.app, "qubes-close")
    return weakref.ref(world)


async def end_tasks(*parents: asyncio.Task[None] | None) -> None:
    """What the platform's tests do before they look."""
    others = asyncio.all_tasks() - {asyncio.current_task(), *parents}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def test_a_machine_that_is_closed_is_forgotten(tmp_path: Path) -> None:
    async def story() -> None:
        closed = await busy_world(tmp_path)
        await asyncio.create_task(end_tasks(asyncio.current_task()))
        await asyncio.sleep(0)
        gc.collect()
        assert closed() is None

    run(story())
