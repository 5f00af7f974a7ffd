# SPDX-License-Identifier: GPL-2.0-or-later
"""What qubes/tests/extra.py of qubes-core-admin gives to tests, with the lab's guests as qubes."""

from __future__ import annotations

import asyncio
import sys
import types
import unittest
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from tests.dom0 import conftest  # noqa: F401 (which makes `qubes` importable)
from tests.dom0.world import ROOT, Qube
from tests.lab.guests import Guest
from tests.lab.qubes import Qubes

from .dom0 import SECONDS, GuestDatabase, LabWorld, PolicyLab

START_SECONDS = 120
QUBES = {"backend": "sys-usb", "frontend": "work"}
"""Which guest is the qube that a test asks for."""


class Features(dict[str, object]):
    """Those of a qube without a template."""

    check_with_template = dict.get


class Finished:
    """A process that has ended."""

    def __init__(self, stdout: bytes) -> None:
        self._stdout = stdout

    def communicate(self) -> tuple[bytes, None]:
        return self._stdout, None


class Machine:
    """dom0 and its guests; a qube with a stub domain is one with it, and has its name."""

    def __init__(self, lab: PolicyLab, folder: Path) -> None:
        self.lab, self._folder = lab, folder
        self.loop = asyncio.new_event_loop()
        self._stub = lab.start_frontend("work-dm")
        self._down: set[Guest] = set()
        self.world = self._new_world()
        lab.watch(lab.backend, self._changed)

    def _new_world(self) -> LabWorld:
        world = LabWorld(self._folder, self.lab, self._stub)
        self.lab.rules, self.lab.before = world.rules, ()
        for name in QUBES.values():
            vm = world.app.domains[name]
            vm.state, vm.untrusted_qdb, vm.features = "Halted", None, Features()
        return world

    def _changed(self, key: str) -> None:
        if key == ROOT and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        if self.world.usb.is_running():
            self.world.usb.untrusted_qdb.stale = 0.0
            self.world.change()

    def guest(self, vm: Qube) -> Guest:
        return self.world.guests[f"{vm.name}-dm" if vm.virt_mode == "hvm" else vm.name]

    def boot(self, guest: Guest) -> None:
        if guest in self._down:
            guest.restart(START_SECONDS)
            self._down.remove(guest)

    async def start(self, vm: Qube) -> None:
        await asyncio.to_thread(self.boot, self.guest(vm))
        vm.state = "Running"
        if vm == self.world.usb:
            vm.untrusted_qdb = GuestDatabase(self.guest(vm))
        await vm.fire_event_async("domain-start")

    async def kill(self, vm: Qube) -> None:
        self._down.add(self.guest(vm))
        await asyncio.to_thread(self.guest(vm).kill)
        vm.state, vm.untrusted_qdb = "Halted", None
        await vm.fire_event_async("domain-shutdown")

    def end(self) -> None:
        """After a test nothing may be left of it, in the guests or in the extension."""
        self.loop.run_until_complete(_end_tasks())
        for guest in list(self._down):
            self.boot(guest)
        problems = Qubes(self.lab).await_clean()
        self.world = self._new_world()
        assert not problems, problems


async def _end_tasks() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


class VMWrapper:
    """A qube whose commands return when they are done, while the loop runs."""

    def __init__(self, machine: Machine, vm: Qube) -> None:
        self._machine, self._vm = machine, vm

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vm, name)

    def __setattr__(self, name: str, value: object) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:
            setattr(self._vm, name, value)

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._machine.loop.run_until_complete(work)

    def start(self) -> None:
        self._do(self._machine.start(self._vm))

    def kill(self) -> Coroutine[Any, Any, None]:
        return self._machine.kill(self._vm)

    def run(
        self, command: str, wait: bool = False, user: str = "user", passio_popen: bool = False
    ) -> Any:
        assert wait is not passio_popen
        guest = self._machine.guest(self._vm)
        done = self._do(asyncio.to_thread(guest.run, command, user, check=False))
        return done.code if wait else Finished(done.stdout)

    def run_service(self, service: str, input: str, user: str) -> int:
        call = self._machine.lab.call
        guest = self._machine.guest(self._vm)
        done = self._do(asyncio.to_thread(call, guest, service, input.encode(), SECONDS, user))
        code: int = done.code
        return code


class ExtraTestCase(unittest.TestCase):
    """Its qubes are the lab's guests, which a test gets as if they had never been started."""

    machine: ClassVar[Machine]
    template: str | None = None

    def setUp(self) -> None:
        self.addCleanup(self.machine.end)
        self.app, self.loop = self.machine.world.app, self.machine.loop

    def create_vms(self, names: list[str]) -> list[VMWrapper]:
        domains = self.app.domains
        return [VMWrapper(self.machine, domains[QUBES[name]]) for name in names]

    def qrexec_policy(
        self, service: str, source: str, destination: str, allow: bool = True
    ) -> None:
        self.machine.lab.before += ((service, source, destination, allow),)

    def skipTest(self, reason: Any) -> NoReturn:
        raise AssertionError(f"everything can be run here: {reason}")


def provide() -> None:
    """Let modules import it by the name that it has on a real machine."""
    for name in ("qubes.tests", "qubes.tests.extra"):
        module = types.ModuleType(name)
        module.ExtraTestCase = ExtraTestCase  # type: ignore[attr-defined]
        sys.modules[name] = module
