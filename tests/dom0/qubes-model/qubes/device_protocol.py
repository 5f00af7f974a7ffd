# SPDX-License-Identifier: GPL-2.0-or-later
"""Ports, devices, assignments."""

from __future__ import annotations

from enum import Enum
from typing import Any

from qubes.exc import ProtocolError

UNKNOWN_ID = "0000:0000::?******"


class Port:
    def __init__(self, backend_domain: Any, port_id: str, devclass: str) -> None:
        self.backend_domain = backend_domain
        self.port_id = port_id
        self.devclass = devclass

    def _key(self) -> tuple[str, str, str]:
        return str(self.backend_domain.name), self.port_id, self.devclass

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Port) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __str__(self) -> str:
        return f"{self.backend_domain.name}:{self.port_id}"


class VirtualDevice:
    def __init__(self, port: Port, device_id: str | None = None) -> None:
        self.port = port
        self._device_id = device_id

    @property
    def device_id(self) -> str:
        return self._device_id or "*"

    @property
    def backend_domain(self) -> Any:
        return self.port.backend_domain

    @property
    def port_id(self) -> str:
        return self.port.port_id

    @property
    def devclass(self) -> str:
        return self.port.devclass

    def __eq__(self, other: object) -> bool:
        if isinstance(other, VirtualDevice | DeviceAssignment):
            return (self.port, self.device_id) == (other.port, other.device_id)
        return NotImplemented

    def __hash__(self) -> int:
        return hash((self.port, self.device_id))

    def __str__(self) -> str:
        return f"{self.port}:{self.device_id}"


class DeviceInterface:
    def __init__(self, interface_encoding: str, devclass: str | None = None) -> None:
        self._code = (devclass[0] if devclass else "") + interface_encoding

    def __repr__(self) -> str:
        return self._code

    def __eq__(self, other: object) -> bool:
        return repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(self._code)


class DeviceInfo(VirtualDevice):
    vendor = product = manufacturer = name = serial = "unknown"

    @property
    def interfaces(self) -> list[DeviceInterface]:
        return [DeviceInterface("?******")]

    @property
    def device_id(self) -> str:
        return self._device_id or UNKNOWN_ID

    @property
    def attachment(self) -> Any:
        return None

    @property
    def description(self) -> str:
        vendor = self.vendor if self.vendor != "unknown" else self.manufacturer
        return f"USB device: {vendor} {self.product}"


class UnknownDevice(DeviceInfo):
    pass


class AssignmentMode(Enum):
    MANUAL = "manual"
    ASK = "ask-to-attach"
    AUTO = "auto-attach"
    REQUIRED = "required"


class DeviceAssignment:
    def __init__(
        self,
        device: VirtualDevice,
        frontend_domain: Any = None,
        options: dict[str, str] | None = None,
        mode: str = "manual",
    ) -> None:
        self.virtual_device = VirtualDevice(device.port, device.device_id)
        self.frontend_domain = frontend_domain
        self.options = options or {}
        self.mode = AssignmentMode(mode)
        self.port_id, self.device_id = device.port_id, device.device_id
        self.port, self.backend_domain = device.port, device.backend_domain
        self.devclass = device.devclass

    def __str__(self) -> str:
        return str(self.virtual_device)

    def __eq__(self, other: object) -> bool:
        return self.virtual_device == other

    def __hash__(self) -> int:
        return hash(self.virtual_device)

    @property
    def attach_automatically(self) -> bool:
        return self.mode != AssignmentMode.MANUAL

    @property
    def required(self) -> bool:
        return self.mode == AssignmentMode.REQUIRED

    @property
    def device(self) -> DeviceInfo:
        exposed = self.backend_domain.devices[self.port.devclass]
        found = exposed[self.port_id] if self.port_id != "*" else None
        if isinstance(found, UnknownDevice) or (found and self.matches(found)):
            return found
        matching = [device for device in exposed if self.matches(device)]
        if len(matching) != 1:
            raise ProtocolError("no device, or several")
        only: DeviceInfo = matching[0]
        return only

    def matches(self, device: VirtualDevice) -> bool:
        return (
            (self.port.devclass, self.backend_domain) == (device.devclass, device.backend_domain)
            and self.port_id in ("*", device.port_id)
            and self.device_id in ("*", device.device_id)
        )
