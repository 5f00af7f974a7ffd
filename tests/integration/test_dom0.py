# SPDX-License-Identifier: GPL-2.0-or-later
"""dom0's extension with real devices: from what sys-usb's QubesDB says to lsusb in a qube."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.dom0 import conftest  # noqa: F401 (which makes `qubes` importable)
from tests.dom0.world import ROOT, Qube, World
from tests.lab.guests import Guest
from tests.lab.lab import Lab

PACKAGES = Path(__file__).parents[2] / "dist"
SECONDS = 60


class PolicyLab(Lab):
    """The lab, with the policy that the extension writes."""

    rules = Path()

    def _user(self, source: str, target: str, full_name: str) -> str | None:
        service, _, argument = full_name.partition("+")
        wanted = f"{service} +{argument} {source} {target} allow user=root"
        try:
            return "root" if wanted in self.rules.read_text().splitlines() else None
        except FileNotFoundError:
            return None


class GuestDatabase:
    """A guest's QubesDB, as qubesd reads it; all of it is asked for at once, as that takes long."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._keys: dict[str, bytes] = {}
        self.stale = 0.0

    def _all(self) -> dict[str, bytes]:
        if time.monotonic() > self.stale:
            self._keys = self._guest.database()
            self.stale = time.monotonic() + 0.2
        return self._keys

    def read(self, path: str) -> bytes | None:
        return self._all().get(path)

    def list(self, prefix: str) -> list[str]:
        return [path for path in self._all() if path.startswith(prefix)]

    def clear(self) -> None:
        """A qube that ends takes it along."""


class LabWorld(World):
    """qubesd's qubes, of which some are guests."""

    def __init__(self, folder: Path, lab: Lab, other: Guest) -> None:
        super().__init__(folder)
        self.lab = lab
        self.guests = {"sys-usb": lab.backend, "work": lab.frontend, "home": other}
        self.usb.untrusted_qdb = GuestDatabase(lab.backend)

    def watch(self) -> None:
        """Hear of changes in sys-usb, from now on and in this loop."""
        loop = asyncio.get_running_loop()

        def changed(key: str) -> None:
            self.usb.untrusted_qdb.stale = 0.0
            if key == ROOT and not loop.is_closed():
                loop.call_soon_threadsafe(self.change)

        self.lab.watch(self.lab.backend, changed)
        self.change()

    async def serve(self, vm: Qube, service: str, words: list[str], stubdom: bool) -> None:
        request = f"{' '.join(words)}\n".encode()
        guest = self.guests[vm.name]
        done = await asyncio.to_thread(self.lab.call, guest, service, request, SECONDS)
        if done.code:
            raise subprocess.CalledProcessError(done.code, service, done.stdout, done.stderr)


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
    assert not world.rules.exists()
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
    lab.backend.plug_storage("stick", 1 << 20)
    await until(lambda: sees(work), "it was not attached by itself")
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
