# SPDX-License-Identifier: GPL-2.0-or-later
"""What a qube exposes, has and is assigned, by class of device."""

from collections.abc import Iterator
from typing import Any

from qubes.device_protocol import DeviceAssignment, Port, UnknownDevice
from qubes.exc import (
    DeviceAlreadyAttached,
    DeviceNotAssigned,
    ProtocolError,
    QubesVMNotRunningError,
)


class DeviceCollection:
    def __init__(self, vm: Any, bus: str) -> None:
        self._vm = vm
        self._bus = bus
        self._set: list[DeviceAssignment] = []

    async def attach(self, assignment: DeviceAssignment) -> None:
        if self._vm.is_halted():
            raise QubesVMNotRunningError(self._vm, "VM not running, cannot attach device")
        device = assignment.device
        if isinstance(device, UnknownDevice):
            raise ProtocolError("device not recognized")
        if any(device == attached.device for attached in self.get_attached_devices()):
            raise DeviceAlreadyAttached(f"device {device} already attached to {self._vm.name}")
        arguments = {"device": device, "options": assignment.options}
        await self._vm.fire_event_async(
            f"device-pre-attach:{self._bus}", pre_event=True, **arguments
        )
        await self._vm.fire_event_async(f"device-attach:{self._bus}", **arguments)

    async def detach(self, port: Port) -> None:
        attached = [one for one in self.get_attached_devices() if one.port_id == port.port_id]
        if not attached:
            raise DeviceNotAssigned(f"device {port} not attached to {self._vm.name}")
        port = attached[0].device.port
        await self._vm.fire_event_async(f"device-pre-detach:{self._bus}", pre_event=True, port=port)
        await self._vm.fire_event_async(f"device-detach:{self._bus}", port=port)

    async def assign(self, assignment: DeviceAssignment) -> None:
        self._set.append(assignment)

    async def unassign(self, assignment: DeviceAssignment) -> None:
        self._set.remove(assignment)

    def get_assigned_devices(self) -> Iterator[DeviceAssignment]:
        yield from self._set

    def get_attached_devices(self) -> Iterator[DeviceAssignment]:
        for device, options in self._vm.fire_event(f"device-list-attached:{self._bus}"):
            assigned = [one for one in self._set if one == device]
            yield assigned[0] if assigned else DeviceAssignment(device, self._vm, options)

    def __iter__(self) -> Iterator[Any]:
        yield from self._vm.fire_event(f"device-list:{self._bus}")

    def __getitem__(self, port_id: str) -> Any:
        found = self._vm.fire_event(f"device-get:{self._bus}", port_id=port_id)
        return found[0] if found else UnknownDevice(Port(self._vm, port_id, self._bus))


class DeviceManager(dict[str, DeviceCollection]):
    def __init__(self, vm: Any) -> None:
        super().__init__()
        self._vm = vm

    def __missing__(self, key: str) -> DeviceCollection:
        self[key] = DeviceCollection(self._vm, key)
        return self[key]
