# SPDX-License-Identifier: GPL-2.0-or-later
"""Attaching and detaching, one request for a port after the other, and each told once.

A change is seen twice: by whoever asks for it (DeviceCollection.attach and detach in
qubes/devices.py fire the event after our handler), and in QubesDB, before, after or never.
So a port is *held* from the request until that event, and what QubesDB says of it waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from subprocess import CalledProcessError
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from usb_proxy.dom0 import records, requests, services
from usb_proxy.dom0.device import USBDevice
from usb_proxy.dom0.qubesd import (
    QubesException,
    QubesVMNotRunningError,
    UnrecognizedDevice,
)
from usb_proxy.errors import sentence

if TYPE_CHECKING:
    from usb_proxy.dom0 import ledger
    from usb_proxy.dom0.looks import Looks
    from usb_proxy.dom0.policy import CallRules
    from usb_proxy.dom0.qubesd import Port, Qube
    from usb_proxy.dom0.wishes import Wishes

SETTLE_SECONDS = 3.0
"""How long QubesDB may take to show what a service has done: it is not the same connection."""

EVENT_SECONDS = 10.0
"""How long after a request qubesd may take to fire its event, which it does not if another
extension objects; then the change is told as one that was only seen."""


@dataclass
class _Hold:
    """A request that is being worked on, or that is done and not told yet."""

    frontend: str
    detaching: bool
    timer: asyncio.TimerHandle | None = None
    told: asyncio.Event = field(default_factory=asyncio.Event)


class Attachments:
    """All requests."""

    def __init__(self, rules: CallRules, looks: Looks, wishes: Wishes) -> None:
        self._rules = rules
        self._looks = looks
        self._wishes = wishes
        self._known = looks.known
        self._held: dict[Port, _Hold] = {}
        looks.held = self._held
        self._locks: WeakValueDictionary[Port, asyncio.Lock] = WeakValueDictionary()
        self._waiting: dict[Port, asyncio.Event] = {}
        looks.looked = self._looked

    def _looked(self, port: Port) -> None:
        """A port that is held was about to be looked at."""
        if waiting := self._waiting.get(port):
            waiting.set()

    def close(self) -> None:
        """Wait for nothing any more."""
        for hold in self._held.values():
            if hold.timer:
                hold.timer.cancel()

    async def stopped(self, vm: Qube) -> None:
        """A qube ended; what it was just given has gone from it, too."""
        for port, hold in list(self._held.items()):
            if hold.frontend == vm.name:
                records.end(port.backend_domain, port.port_id, vm.name)
        await self._looks.stopped(vm)

    async def attach(self, vm: Qube, device: USBDevice) -> None:
        """Attach a device; a QubesException says why it cannot be."""
        port = device.port
        async with self._turn(port):
            _require_attachable(vm, device)
            seen = self._seen(port)
            if seen is None or seen.device_id != device.device_id:
                raise UnrecognizedDevice(sentence("UP-903", port=port))
            told = services.told(vm, device)
            await self._request(port, _Hold(vm.name, detaching=False), vm, told)
            self._wishes.wanted(port, vm.name)
            self._looks.learn(port)

    async def detach(self, vm: Qube, port: Port) -> None:
        """Take a device from a qube; it can be attached to another one when this returns."""
        async with self._turn(port):
            seen = self._seen(port)
            if seen is None or seen.frontend != vm.name:
                raise requests.NotAttached(sentence("UP-904", port=port, qube=vm.name))
            await self._request(port, _Hold(vm.name, detaching=True), vm)
            self._wishes.let_go(port, seen.device_id, vm.name)

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

    async def _request(self, port: Port, hold: _Hold, vm: Qube, told: str = "") -> None:
        self._held[port] = hold
        try:
            if hold.detaching:
                await self._detach(vm, port)
            else:
                await self._attach(vm, port, told)
            await self._settle(vm, port, hold.detaching)
        except BaseException:
            self._release(port, hold)
            raise
        loop = asyncio.get_running_loop()
        hold.timer = loop.call_later(EVENT_SECONDS, self._release, port, hold)

    async def _attach(self, vm: Qube, port: Port, told: str) -> None:
        backend = port.backend_domain
        try:
            await services.attach(vm, backend, port.port_id, self._rules, told)
        except QubesException as error:
            if isinstance(error.__cause__, CalledProcessError):
                # It failed: what the key says of it is not so, or only for a moment.
                records.end(backend, port.port_id, vm.name)
            raise
        records.begin(backend, port.port_id)

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
        self._waiting[port] = wake
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                while (USBDevice(port).attachment == vm) is detaching:
                    await wake.wait()
                    wake.clear()
        except TimeoutError:
            verb = "detached from" if detaching else "attached to"
            vm.log.warning("%s", sentence("UP-921", port=port, done=verb, qube=vm.name))
        finally:
            del self._waiting[port]

    def _release(self, port: Port, hold: _Hold) -> None:
        """End a hold, and tell what was seen meanwhile."""
        if self._held.get(port) is hold:
            del self._held[port]
            hold.told.set()
            if hold.timer:
                hold.timer.cancel()
            self._looks.refresh(port)

    @asynccontextmanager
    async def _turn(self, port: Port) -> AsyncIterator[None]:
        """One request for a port after the other, each when the one before was told."""
        async with self._locks.setdefault(port, asyncio.Lock()):
            if hold := self._held.get(port):
                await hold.told.wait()
            # What was seen is told first; a handler that waits for this very request is not.
            while (task := self._looks.refresh(port)) is not None:
                if not (await asyncio.wait([task], timeout=EVENT_SECONDS))[0]:
                    break
            yield


def _require_attachable(vm: Qube, device: USBDevice) -> None:
    backend = device.backend_domain
    requests.require_possible(vm, device.port, {})
    for side in (vm, backend):
        if not side.is_running():
            raise QubesVMNotRunningError(side)
        if side.get_power_state() in ("Paused", "Suspended"):
            raise QubesException(sentence("UP-907", qube=side.name))
    if holder := device.attachment:
        raise requests.AlreadyAttached(sentence("UP-908", port=device.port, qube=holder.name))
