# SPDX-License-Identifier: GPL-2.0-or-later
"""Telling qubesd what changed: the events of qubes/devices.py, in order, for each port."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from usb_proxy.dom0.device import DEVICE_CLASS, USBDevice
from usb_proxy.dom0.qubesd import Port
from usb_proxy.errors import sentence

if TYPE_CHECKING:
    from usb_proxy.dom0.ledger import Change
    from usb_proxy.dom0.pace import Pace
    from usb_proxy.dom0.qubesd import Qube

Task = asyncio.Task[None]

EVENT_SECONDS = 0.001
"""What an event counts whose handlers may wait for something."""


class Notices:
    """What is being told; `appeared` is called with each device that is there and free."""

    def __init__(self, pace: Pace, appeared: Callable[[USBDevice], object]) -> None:
        self._pace = pace
        self._appeared = appeared
        self._last: dict[Port, Task] = {}

    def tell(self, backend: Qube, change: Change, *, free: bool) -> Task:
        """Fire the events of one change, after those of the change before in the same port.

        A device that is `free` may be attached by itself then.
        """
        port = Port(backend, change.port, DEVICE_CLASS)
        # Looked up now: a disposable may be gone when it is told.
        sides = qube(backend, change.detached), qube(backend, change.attached)
        telling = partial(self._tell, port, change, sides, free=free)
        task = asyncio.ensure_future(_after(self._last.get(port), telling))
        self._last[port] = task
        task.add_done_callback(partial(self._told, port))
        return task

    def pending(self, port: Port) -> Task | None:
        """What is still being told of a port."""
        return self._last.get(port)

    async def _tell(
        self, port: Port, change: Change, sides: tuple[Qube | None, Qube | None], *, free: bool
    ) -> None:
        before, after = sides
        backend = port.backend_domain
        if before is not None:
            await self._fire(before, f"device-detach:{DEVICE_CLASS}", backend.name, port=port)
        if change.removed:
            async with self._pace.turn(backend.name):
                fire(backend, f"device-removed:{DEVICE_CLASS}", port=port)
        device = USBDevice(port)
        if change.added:
            async with self._pace.turn(backend.name):
                fire(backend, f"device-added:{DEVICE_CLASS}", device=device)
        if after is not None:
            event = f"device-attach:{DEVICE_CLASS}"
            await self._fire(after, event, backend.name, device=device, options={})
        if free:
            self._appeared(device)

    async def _fire(self, vm: Qube, event: str, cause: str, **arguments: Any) -> None:
        async with self._pace.turn(cause, EVENT_SECONDS):
            pass  # handlers may wait, and a turn must not
        try:
            await vm.fire_event_async(event, **arguments)
        except Exception as error:
            vm.log.warning("%s", sentence("UP-924", event=event, reason=error))

    def _told(self, port: Port, task: Task) -> None:
        if self._last.get(port) is task:
            del self._last[port]


async def _after(previous: Task | None, telling: Callable[[], Awaitable[None]]) -> None:
    if previous is not None:
        await asyncio.wait([previous])
    await telling()


def qube(backend: Qube, name: str | None) -> Qube | None:
    """The qube of that name on the same machine, if there is one."""
    try:
        found: Qube | None = backend.app.domains[name] if name else None
    except KeyError:
        return None
    return found


def fire(vm: Qube, event: str, **arguments: Any) -> None:
    """Fire an event; a handler that fails is another extension's, and stops nothing here."""
    try:
        vm.fire_event(event, **arguments)
    except Exception as error:
        vm.log.warning("%s", sentence("UP-924", event=event, reason=error))
