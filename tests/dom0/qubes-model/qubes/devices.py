# SPDX-License-Identifier: GPL-2.0-or-later
"""The devices of a qube: those that it exposes, has, and shall have. Extensions know and do all."""

from collections.abc import Iterator
from typing import Any

from qubes import exc
from qubes.device_protocol import (
    AssignmentMode,
    DeviceAssignment,
    Port,
    UnknownDevice,
    VirtualDevice,
)


class DeviceCollection:
    """Those of one class."""

    def __init__(self, vm: Any, devclass: str) -> None:
        self.vm, self.devclass = vm, devclass
        self.assigned: list[DeviceAssignment] = []

    def _ask(self, what: str, **details: Any) -> list[Any]:
        given: list[Any] = self.vm.fire_event(f"device-{what}:{self.devclass}", **details)
        return given

    async def _do(self, what: str, **details: Any) -> None:
        for before in ("pre-", ""):
            event = f"device-{before}{what}:{self.devclass}"
            await self.vm.fire_event_async(event, pre_event=bool(before), **details)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._ask("list"))

    def __getitem__(self, port_id: str) -> Any:
        port = Port(self.vm, port_id, self.devclass)
        return next(iter(self._ask("get", port_id=port_id)), UnknownDevice(port))

    def get_assigned_devices(self) -> Iterator[DeviceAssignment]:
        return iter(self.assigned)

    def get_attached_devices(self) -> Iterator[DeviceAssignment]:
        for device, options in self._ask("list-attached"):
            attached = DeviceAssignment(device, self.vm, options)
            yield next((one for one in self.assigned if one == attached), attached)

    async def attach(self, assignment: DeviceAssignment) -> None:
        if self.vm.is_halted():
            raise exc.QubesVMNotRunningError(self.vm)
        device = assignment.device
        if isinstance(device, UnknownDevice):
            raise exc.ProtocolError
        if device in self.get_attached_devices():
            raise exc.DeviceAlreadyAttached
        await self._do("attach", device=device, options=assignment.options)

    async def detach(self, port: Port) -> None:
        if port not in [attached.port for attached in self.get_attached_devices()]:
            raise exc.DeviceNotAssigned
        await self._do("detach", port=port)

    def load_assignment(self, assignment: DeviceAssignment) -> None:
        self.assigned.append(assignment)

    async def assign(self, assignment: DeviceAssignment) -> None:
        if assignment in self.assigned:
            raise exc.DeviceAlreadyAssigned
        self.assigned.append(assignment)
        device = assignment.virtual_device
        await self._do("assign", device=device, options=assignment.options)

    async def update_assignment(self, device: VirtualDevice, mode: AssignmentMode) -> None:
        (old,) = [one for one in self.assigned if one.virtual_device == device]
        if old.mode == mode:
            return
        event = f"device-pre-assign:{self.devclass}"
        details = {"device": device, "options": old.options}
        await self.vm.fire_event_async(event, pre_event=True, **details)
        self.assigned.remove(old)
        new = DeviceAssignment(old.virtual_device, self.vm, old.options, mode.value)
        self.assigned.append(new)
        event = f"device-assignment-changed:{self.devclass}"
        await self.vm.fire_event_async(event, device=device)

    async def unassign(self, assignment: DeviceAssignment) -> None:
        if assignment not in self.assigned:
            raise exc.DeviceNotAssigned
        self.assigned.remove(assignment)


class DeviceManager(dict[str, DeviceCollection]):
    """All of them, by class."""

    def __init__(self, vm: Any) -> None:
        super().__init__()
        self.vm = vm

    def __missing__(self, devclass: str) -> DeviceCollection:
        return self.setdefault(devclass, DeviceCollection(self.vm, devclass))
