# SPDX-License-Identifier: GPL-2.0-or-later
"""Attaching what is assigned, device by device: none waits for another, or falls with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from usb_proxy.dom0.device import DEVICE_CLASS, USBDevice
from usb_proxy.dom0.qubesd import Port, local_qubes
from usb_proxy.dom0.services import ServiceError
from usb_proxy.errors import sentence

if TYPE_CHECKING:
    from usb_proxy.dom0.qubesd import Assignment, Qube

PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
"""Seconds before each new try: a device takes this long to come back after resume or a reset."""

Confirm = Callable[[USBDevice, Mapping[Any, "Assignment"]], Awaitable[str]]
"""Asks the user which of the qubes gets a device: its name, or '' for none of them
(confirm_device_attachment in qubes/ext/utils.py)."""


def assigned(vm: Qube, device: USBDevice) -> Assignment | None:
    """The most specific assignment of a device to a qube.

    Port and identity come before port, port before identity (doc/qubes-devices.rst).
    """
    found = [
        assignment
        for assignment in vm.devices[DEVICE_CLASS].get_assigned_devices()
        if assignment.matches(device)
    ]
    return max(found, key=lambda a: (a.port_id != "*", a.device_id != "*"), default=None)


def candidates(device: USBDevice) -> dict[Qube, Assignment]:
    """The running qubes that a device is assigned to."""
    found = {}
    for vm in local_qubes(device.backend_domain.app):
        try:
            may = vm.klass != "AdminVM" and vm != device.backend_domain and vm.is_running()
            if may and (assignment := wanted(vm, device)):
                found[vm] = assignment
        except Exception as error:  # of one qube only, such as libvirt's
            vm.log.warning("%s", sentence("UP-923", qube=vm.name, reason=error))
    return found


def wanted(vm: Qube, device: USBDevice) -> Assignment | None:
    """The same, and a line in the log if another device is in an assigned port."""
    if found := assigned(vm, device):
        return found
    for assignment in vm.devices[DEVICE_CLASS].get_assigned_devices():
        if assignment.port_id == device.port_id and (
            assignment.backend_domain == device.backend_domain
        ):
            text = sentence(
                "UP-920",
                port=device.port,
                device=device.device_id,
                qube=vm.name,
                wanted=assignment.device_id,
            )
            vm.log.warning("%s", text)
    return None


class _Chain:
    """What is being done for one port, one thing after the other."""

    def __init__(self, attach: Callable[[Qube, USBDevice, Assignment], Awaitable[None]]) -> None:
        self._attach = attach
        self._next: USBDevice | None = None
        self._wake = asyncio.Event()
        self.tried = asyncio.Event()
        """Set after the first try, and before a question to the user."""

    def add(self, device: USBDevice) -> None:
        """A device appeared (again): it is the one that counts, and its tries start anew."""
        self._next = device
        self._wake.set()

    async def run(self, confirm: Confirm) -> None:
        while device := self._next:
            self._next = None
            self._wake.clear()
            try:
                await self._follow(device, confirm)
            except Exception as error:
                text = sentence("UP-925", port=device.port, reason=error)
                device.backend_domain.log.warning("%s", text)
        self.tried.set()

    async def _follow(self, device: USBDevice, confirm: Confirm) -> None:
        vm = await self._choose(device, confirm)
        for pause in (0.0, *PAUSES):
            if await self._renewed(pause) or vm is None:
                return
            assignment = _still(vm, device)
            if assignment is None or await self._try(vm, device, assignment):
                return
            self.tried.set()
        if vm is not None:
            vm.log.warning("%s", sentence("UP-919", port=device.port, qube=vm.name))

    async def _choose(self, device: USBDevice, confirm: Confirm) -> Qube | None:
        found = candidates(device)
        if device.attachment is not None:
            return None
        if len(found) == 1:
            vm, assignment = next(iter(found.items()))
            if assignment.mode.value != "ask-to-attach":
                return vm
        if not found:
            return None
        self.tried.set()
        name = (await confirm(device, found)).strip()
        return next((vm for vm in found if vm.name == name), None)

    async def _try(self, vm: Qube, device: USBDevice, assignment: Assignment) -> bool:
        """Whether there is nothing left to do: it is attached, or never will be."""
        try:
            await self._attach(vm, device, assignment)
        except Exception as error:
            text = sentence("UP-918", port=device.port, qube=vm.name, quoted=error)
            vm.log.warning("%s", text)
            return isinstance(error, ServiceError) and error.hopeless
        return True

    async def _renewed(self, pause: float) -> bool:
        """Pause, unless the device appears again."""
        if pause and not self._wake.is_set():
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                pass
        return self._wake.is_set()


def _still(vm: Qube, device: USBDevice) -> Assignment | None:
    """The assignment, as long as it stands, the device is there and free, and the qube runs."""
    now = USBDevice(device.port)
    if now.device_id != device.device_id or now.attachment is not None or not vm.is_running():
        return None
    return assigned(vm, now)


class AutoAttach:
    """All ports that have something to be attached."""

    def __init__(
        self,
        attach: Callable[[Qube, USBDevice, Assignment], Awaitable[None]],
        confirm: Confirm,
    ) -> None:
        self._attach = attach
        self._confirm = confirm
        self._chains: dict[Port, _Chain] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, device: USBDevice) -> asyncio.Event:
        """Attach a device where it is assigned, if anywhere; the event tells of the first try."""
        chain = self._chains.get(device.port)
        if chain is None:
            chain = self._chains[device.port] = _Chain(self._attach)
            task = asyncio.ensure_future(self._run(device.port, chain))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        chain.add(device)
        return chain.tried

    async def _run(self, port: Port, chain: _Chain) -> None:
        try:
            await chain.run(self._confirm)
        finally:
            del self._chains[port]

    def stop(self) -> None:
        """End everything that is under way."""
        for task in self._tasks:
            task.cancel()
