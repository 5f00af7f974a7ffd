# SPDX-License-Identifier: GPL-2.0-or-later
"""dom0's extension with real devices: from what sys-usb's QubesDB says to lsusb in a qube."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.lab.guests import Guest
from tests.lab.qubes import PACKAGES
from usb_proxy.dom0.wishes import GAP_SECONDS

from .dom0 import SECONDS, LabWorld, PolicyLab


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabWorld]:
    folder = tmp_path_factory.mktemp("policy.d")
    with PolicyLab(PACKAGES, os.environ.get("LAB_SUITE", "bookworm"), print) as lab:
        world = LabWorld(folder, lab, lab.start_frontend("home"))
        lab.rules = world.rules
        yield world


async def until(holds: Callable[[], object], what: str) -> None:
    """Wait for a condition, while the extension works."""
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.1)


def sees(guest: Guest) -> bool:
    """Whether a qube has the stick."""
    return "QEMU" in guest.run("lsusb | grep -v 'root hub'; true").text


async def journey(world: LabWorld) -> None:
    """A stick is listed, attached, moved at once, detached, and attached by itself."""
    lab, work, home = world.lab, world.guests["work"], world.guests["home"]
    world.watch()
    lab.backend.plug_storage("stick", 1 << 20)
    await until(lambda: "added sys-usb sys-usb:2-1" in world.told, "nothing was added")
    device: Any = world.device()
    assert (device.serial, device.attachment) == ("stick", None)

    await world.attach(world.work)
    assert sees(work)
    assert not world.allowed()
    assert world.holder() == "work"

    # No pause: the backend may still be giving the device back.
    await world.detach(world.work)
    await world.attach(world.home)
    assert sees(home)
    assert not sees(work)
    assert world.holder() == "home"
    await world.detach(world.home)
    assert world.holder() is None

    lab.backend.unplug("stick")
    await until(lambda: "removed sys-usb sys-usb:2-1" in world.told, "nothing was removed")
    await world.assign(world.work)
    # Who pulls one and plugs it in takes longer than a device that bounces; this machine may not.
    await asyncio.sleep(GAP_SECONDS)
    lab.backend.plug_storage("stick", 1 << 20)
    await until(lambda: sees(work), f"it was not attached by itself: {world.told}")
    again = "attach work sys-usb:2-1"
    await until(lambda: world.told.count(again) == 2, "dom0 was not told")
    assert world.holder() == "work"
    await world.detach(world.work)
    assert world.news() == {
        "list-change sys-usb": 3,
        "added sys-usb sys-usb:2-1": 2,
        "removed sys-usb sys-usb:2-1": 1,
        "attach work sys-usb:2-1": 2,
        "detach work sys-usb:2-1": 2,
        "attach home sys-usb:2-1": 1,
        "detach home sys-usb:2-1": 1,
    }
    assert lab.backend.run("readlink /sys/bus/usb/devices/2-1/driver").text.endswith("/usb")


def test_from_the_backends_database_to_lsusb(world: LabWorld) -> None:
    asyncio.run(journey(world))
