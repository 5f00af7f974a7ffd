# SPDX-License-Identifier: GPL-2.0-or-later
"""Which device is meant: by its place, by what it is, or by both."""

from __future__ import annotations

from enum import Enum
from typing import Any, NamedTuple, Self

from qubes.exc import ProtocolError

ANY = "*"


class Port(NamedTuple):
    """A place."""

    backend_domain: Any
    port_id: str
    devclass: str

    def __str__(self) -> str:
        return f"{self.backend_domain.name}:{self.port_id}"


class VirtualDevice:
    """A place and an identity, either of which may be any; whatever has the same two is equal."""

    def __init__(self, port: Port, device_id: str = ANY) -> None:
        self.port, self._identity = port, device_id

    def __getattr__(self, name: str) -> Any:
        return getattr(self.port, name)

    @property
    def device_id(self) -> str:
        return self._identity

    @property
    def _both(self) -> tuple[Port, str]:
        return self.port, self.device_id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VirtualDevice) and self._both == other._both

    def __hash__(self) -> int:
        return hash(self._both)

    def __str__(self) -> str:
        return f"{self.port}:{self.device_id}"


class DeviceInterface(str):
    """Class, subclass and protocol of an interface, behind the first letter of the device class."""

    def __new__(cls, code: str, devclass: str = "") -> Self:
        return super().__new__(cls, devclass[:1] + code)

    __repr__ = str.__str__


class DeviceInfo(VirtualDevice):
    """A device of which nothing is known but its place."""

    vendor = product = manufacturer = name = serial = "unknown"
    attachment: Any = None

    def __init__(self, port: Port) -> None:
        super().__init__(port, "0000:0000::?******")

    @property
    def interfaces(self) -> list[DeviceInterface]:
        return [DeviceInterface("?******")]

    @property
    def description(self) -> str:
        return f"device {self.manufacturer} {self.name}"


class UnknownDevice(DeviceInfo):
    """What is said to be in a port that has none."""


class AssignmentMode(Enum):
    MANUAL = "manual"
    ASK = "ask-to-attach"
    AUTO = "auto-attach"
    REQUIRED = "required"


class DeviceAssignment(VirtualDevice):
    """A device that a qube has, or shall have."""

    def __init__(
        self,
        device: VirtualDevice,
        frontend_domain: Any = None,
        options: dict[str, str] | None = None,
        mode: str = "manual",
    ) -> None:
        super().__init__(device.port, device.device_id)
        self.virtual_device = device
        self.frontend_domain = frontend_domain
        self.options = options or {}
        self.mode = AssignmentMode(mode)
        self.required = mode == "required"
        self.attach_automatically = mode != "manual"

    def matches(self, device: VirtualDevice) -> bool:
        """Whether a device is one that is meant."""
        wanted = (*self.port, self.device_id)
        return all(
            mine in (ANY, its)
            for mine, its in zip(wanted, (*device.port, device.device_id), strict=True)
        )

    @property
    def device(self) -> Any:
        """The one that is meant; ProtocolError if there are several, or another one is there."""
        exposed = self.backend_domain.devices[self.devclass]
        there = exposed if self.port_id == ANY else [exposed[self.port_id]]
        meant = [one for one in there if self.matches(one) or isinstance(one, UnknownDevice)]
        if len(meant) != 1:
            raise ProtocolError
        return meant[0]
