# SPDX-License-Identifier: GPL-2.0-or-later
"""Which device is where: changing it, noticing that it changed, and telling each change once.

A change is seen twice: by whoever asks for it (DeviceCollection.attach and detach in
qubes/devices.py fire the event after our handler), and in QubesDB, before, after or never.
So a port is *held* from the request until that event, and what QubesDB says of it waits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from usb_proxy.dom0 import ledger, records, services
from usb_proxy.dom0.device import DEVICE_CLASS, USBDevice
from usb_proxy.dom0.notices import Notices, Task, fire, qube
from usb_proxy.dom0.qubesd import (
    DeviceAlreadyAttached,
    DeviceNotAssigned,
    Port,
    QubesException,
    QubesVMNotRunningError,
    UnrecognizedDevice,
)
from usb_proxy.errors import sentence

if TYPE_CHECKING:
    from usb_proxy.dom0.policy import CallRules
    from usb_proxy.dom0.qubesd import Qube

SETTLE_SECONDS = 3.0
"""How long QubesDB may take to show what a service has done: it is not the same connection."""

EVENT_SECONDS = 10.0
"""How long after a request qubesd may take to fire its event, which it does not if another
extension objects; then the change is told as one that was only seen."""

REST_SECONDS = 5.0
"""A device that was just taken from a qube is not attached again by itself for this long: some
leave the bus and come back when they are given back to their driver."""

QUIET_SECONDS = 0.1
"""A backend that writes all the time is looked at ten times a second, or less often if looking
takes long, and not at each write: one tenth of a processor is all that it gets."""


@dataclass
class _Hold:
    """A request that is being worked on, or that is done and not told yet."""

    frontend: str
    detaching: bool
    timer: asyncio.TimerHandle | None = None
    told: asyncio.Event = field(default_factory=asyncio.Event)


class Attachments:
    """All that is known; `appeared` is called with each device that is there and free."""

    def __init__(self, rules: CallRules, appeared: Callable[[USBDevice], object]) -> None:
        self._rules = rules
        self._appeared = appeared
        self._notices = Notices(self._came)
        self._known: dict[str, dict[str, ledger.Seen]] = {}
        self._held: dict[Port, _Hold] = {}
        self._locks: WeakValueDictionary[Port, asyncio.Lock] = WeakValueDictionary()
        self._waiting: set[asyncio.Event] = set()
        self._quiet: dict[str, bool] = {}
        self._resting: dict[Port, str] = {}

    def load(self, backend: Qube) -> None:
        """Take what there is as known: qubesd has just started, or the qube is new."""
        self._known[backend.name] = self._look(backend) or {}

    def forget(self, vm: Qube) -> None:
        """A qube exists no more."""
        self._known.pop(vm.name, None)

    def changed(self, backend: Qube) -> None:
        """QubesDB of a backend changed."""
        for event in self._waiting:
            event.set()
        if backend.name in self._quiet:
            self._quiet[backend.name] = True
            return
        started = time.monotonic()
        self.update(backend)
        quiet = max(QUIET_SECONDS, 9 * (time.monotonic() - started))
        self._quiet[backend.name] = False
        asyncio.get_running_loop().call_later(quiet, self._end_quiet, backend)

    def _end_quiet(self, backend: Qube) -> None:
        if self._quiet.pop(backend.name, False):
            self.changed(backend)

    async def stopped(self, vm: Qube) -> None:
        """A qube ended: what it had and what it exposed is told before this returns."""
        tasks = []
        for name, known in list(self._known.items()):
            if name == vm.name or any(seen.frontend == vm.name for seen in known.values()):
                backend = vm if name == vm.name else qube(vm, name)
                tasks += self.update(backend, stopped=vm.name) if backend else []
        await asyncio.gather(*tasks)

    def update(self, backend: Qube, stopped: str | None = None) -> list[Task]:
        """Tell what changed at a backend; the tasks end when everybody was told."""
        known = self._known.setdefault(backend.name, {})
        seen = {} if backend.name == stopped else self._look(backend, stopped)
        if seen is None:
            return []
        held = {port.port_id for port in self._held if port.backend_domain == backend}
        changes = list(ledger.changes(known, seen, held))
        for change in changes:
            known.pop(change.port, None)
            if change.port in seen:
                known[change.port] = seen[change.port]
        if any(change.removed or change.added for change in changes):
            fire(backend, f"device-list-change:{DEVICE_CLASS}")
        return [self._notices.tell(backend, change) for change in changes]

    @staticmethod
    def _look(backend: Qube, stopped: str | None = None) -> dict[str, ledger.Seen] | None:
        """What there is now; None if that cannot be told, which the next look will do."""
        found = {}
        try:
            for port in records.ports(backend):
                device = USBDevice.at(backend, port)
                vm = device.attachment
                frontend = None if vm is None or vm.name == stopped else vm.name
                found[str(port)] = ledger.Seen(device.device_id, frontend)
        except Exception as error:  # libvirt's, of one of the frontends
            backend.log.warning("%s", sentence("UP-922", qube=backend.name, reason=error))
            return None
        return found

    async def attach(self, vm: Qube, device: USBDevice) -> None:
        """Attach a device; a QubesException says why it cannot be."""
        port = device.port
        async with self._turn(port):
            _require_attachable(vm, device)
            seen = self._seen(port)
            if seen is None or seen.device_id != device.device_id:
                raise UnrecognizedDevice(sentence("UP-903", port=port))
            await self._request(port, _Hold(vm.name, detaching=False), vm)

    async def detach(self, vm: Qube, port: Port) -> None:
        """Take a device from a qube; it can be attached to another one when this returns."""
        async with self._turn(port):
            seen = self._seen(port)
            if seen is None or seen.frontend != vm.name:
                raise DeviceNotAssigned(sentence("UP-904", port=port, qube=vm.name))
            await self._request(port, _Hold(vm.name, detaching=True), vm)
            self._resting[port] = seen.device_id
            loop = asyncio.get_running_loop()
            loop.call_later(REST_SECONDS, self._resting.pop, port, None)

    def _came(self, device: USBDevice) -> None:
        if self._resting.get(device.port) != device.device_id:
            self._appeared(device)

    def _seen(self, port: Port) -> ledger.Seen | None:
        return self._known[port.backend_domain.name].get(port.port_id)

    def event(self, vm: Qube, port: Port, *, detaching: bool) -> None:
        """An attach or detach was told: by whoever asked for it, if it is the one that is held."""
        hold = self._held.get(port)
        if hold and hold.timer and (hold.frontend, hold.detaching) == (vm.name, detaching):
            known = self._known[port.backend_domain.name]
            frontend = None if detaching else vm.name
            known[port.port_id] = known[port.port_id]._replace(frontend=frontend)
            self._release(port, hold)

    async def _request(self, port: Port, hold: _Hold, vm: Qube) -> None:
        self._held[port] = hold
        backend = port.backend_domain
        try:
            if hold.detaching:
                await self._detach(vm, port)
            else:
                await services.attach(vm, backend, port.port_id, self._rules)
            await self._settle(vm, port, hold.detaching)
        except BaseException:
            self._release(port, hold)
            raise
        loop = asyncio.get_running_loop()
        hold.timer = loop.call_later(EVENT_SECONDS, self._release, port, hold)

    @staticmethod
    async def _detach(vm: Qube, port: Port) -> None:
        try:
            await services.detach(vm, port.backend_domain, port.port_id)
        except QubesException:
            if USBDevice(port).attachment == vm:
                raise

    async def _settle(self, vm: Qube, port: Port, detaching: bool) -> None:
        """Wait until QubesDB says it, too, or for a while."""
        wake = asyncio.Event()
        self._waiting.add(wake)
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                while (USBDevice(port).attachment == vm) is detaching:
                    await wake.wait()
                    wake.clear()
        except TimeoutError:
            verb = "detached from" if detaching else "attached to"
            vm.log.warning("%s", sentence("UP-921", port=port, done=verb, qube=vm.name))
        finally:
            self._waiting.discard(wake)

    def _release(self, port: Port, hold: _Hold) -> None:
        """End a hold, and tell what was seen meanwhile."""
        if self._held.get(port) is hold:
            del self._held[port]
            hold.told.set()
            if hold.timer:
                hold.timer.cancel()
            self.update(port.backend_domain)

    @asynccontextmanager
    async def _turn(self, port: Port) -> AsyncIterator[None]:
        """One request for a port after the other, each when the one before was told."""
        async with self._locks.setdefault(port, asyncio.Lock()):
            if hold := self._held.get(port):
                await hold.told.wait()
            self.update(port.backend_domain)
            yield


def _require_attachable(vm: Qube, device: USBDevice) -> None:
    backend = device.backend_domain
    if vm.klass == "AdminVM":
        raise QubesException(sentence("UP-905"))
    if vm == backend:
        raise QubesException(sentence("UP-906", port=device.port, qube=vm.name))
    for side in (vm, backend):
        if not side.is_running():
            raise QubesVMNotRunningError(side)
        if side.get_power_state() in ("Paused", "Suspended"):
            raise QubesException(sentence("UP-907", qube=side.name))
    if holder := device.attachment:
        raise DeviceAlreadyAttached(sentence("UP-908", port=device.port, qube=holder.name))
