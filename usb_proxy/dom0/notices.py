# SPDX-License-Identifier: GPL-2.0-or-later
"""Telling qubesd what changed: the events of qubes/devices.py, in order, for each port."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from usb_proxy.dom0.device import DEVICE_CLASS, USBDevice
from usb_proxy.dom0.qubesd import Port
from usb_proxy.errors import sentence

if TYPE_CHECKING:
    from usb_proxy.dom0.ledger import Change
    from usb_proxy.dom0.qubesd import Qube

Task = asyncio.Task[None]


class Notices:
    """What is being told; `appeared` is called with each device that is there and free."""

    def __init__(self, appeared: Callable[[USBDevice], object]) -> None:
        self._appeared = appeared
        self._last: dict[Port, Task] = {}

    def tell(self, backend: Qube, change: Change) -> Task:
        """Fire the events of one change, after those of the change before in the same port."""
        port = Port(backend, change.port, DEVICE_CLASS)
        # Looked up now: a disposable may be gone when it is told.
        before, after = qube(backend, change.detached), qube(backend, change.attached)
        task = asyncio.ensure_future(self._tell(port, change, before, after, self._last.get(port)))
        self._last[port] = task
        task.add_done_callback(partial(self._told, port))
        return task

    async def _tell(
        self,
        port: Port,
        change: Change,
        before: Qube | None,
        after: Qube | None,
        previous: Task | None,
    ) -> None:
        if previous is not None:
            await asyncio.wait([previous])
        backend = port.backend_domain
        if before is not None:
            await _fire_async(before, f"device-detach:{DEVICE_CLASS}", port=port)
        if change.removed:
            fire(backend, f"device-removed:{DEVICE_CLASS}", port=port)
        if not change.added and after is None:
            return
        device = USBDevice(port)
        if change.added:
            fire(backend, f"device-added:{DEVICE_CLASS}", device=device)
        if after is not None:
            event = f"device-attach:{DEVICE_CLASS}"
            await _fire_async(after, event, device=device, options={})
        else:
            self._appeared(device)

    def _told(self, port: Port, task: Task) -> None:
        if self._last.get(port) is task:
            del self._last[port]


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


async def _fire_async(vm: Qube, event: str, **arguments: Any) -> None:
    try:
        await vm.fire_event_async(event, **arguments)
    except Exception as error:
        vm.log.warning("%s", sentence("UP-924", event=event, reason=error))
