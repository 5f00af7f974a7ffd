# SPDX-License-Identifier: GPL-2.0-or-later
"""A USB device as qubesd describes it to its clients (DeviceInfo, qubes/device_protocol.py)."""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from usb_proxy.dom0 import records, untrusted
from usb_proxy.dom0.qubesd import DeviceInfo, DeviceInterface, Port, QubesValueError
from usb_proxy.dom0.usb_ids import UsbIds
from usb_proxy.errors import sentence

if TYPE_CHECKING:
    from usb_proxy.dom0.qubesd import Qube
    from usb_proxy.dom0.untrusted import Description
    from usb_proxy.idents import BusId, DomainName

DEVICE_CLASS = "usb"
"""This class's name without `Device`, in lower case (device_list_change, qubes/ext/utils.py)."""

UNKNOWN = "unknown"
"""What DeviceInfo has for a text that nobody knows."""

UNKNOWN_IDS = "0000:0000"


@lru_cache(maxsize=1024)
def _interface(code: str) -> DeviceInterface:
    """One interface; making it costs more than all else of a device."""
    return DeviceInterface(code, DEVICE_CLASS)


class USBDevice(DeviceInfo):
    """What is in a port; read when first asked for, and then kept, but for the attachment."""

    def __init__(
        self,
        port: Port,
        usb_ids: UsbIds | None = None,
        holders: dict[DomainName, Qube | None] | None = None,
    ) -> None:
        """What the devices of one list find out of the qubes that have them is in `holders`."""
        if port.devclass != DEVICE_CLASS:
            raise QubesValueError(sentence("UP-917", devclass=port.devclass))
        super().__init__(port)
        self._usb_ids = usb_ids or UsbIds()
        self._holders = holders

    @classmethod
    def at(
        cls,
        backend: Qube,
        port: BusId | str,
        holders: dict[DomainName, Qube | None] | None = None,
    ) -> USBDevice:
        """The device in a port of a qube."""
        return cls(Port(backend, port, DEVICE_CLASS), holders=holders)

    @property
    def vendor(self) -> str:
        """The vendor's name in usb.ids, or `unknown`."""
        return self._names[0] or UNKNOWN

    @property
    def product(self) -> str:
        """The product's name in usb.ids, or `unknown`."""
        return self._names[1] or UNKNOWN

    @property
    def manufacturer(self) -> str:
        """The manufacturer as the device says, or `unknown`."""
        return (self._said and self._said.manufacturer) or UNKNOWN

    @property
    def name(self) -> str:
        """The product as the device says, or `unknown`."""
        return (self._said and self._said.name) or UNKNOWN

    @property
    def serial(self) -> str:
        """The serial number as the device says, or `unknown`."""
        return (self._said and self._said.serial) or UNKNOWN

    @property
    def interfaces(self) -> list[DeviceInterface]:
        """Class, subclass and protocol of each interface."""
        found = list(map(_interface, self.interface_codes))
        return found or super().interfaces

    @property
    def device_id(self) -> str:
        """`VID:PID:SERIAL:uCCSSPP…`, as DeviceInfo.device_id wants it; zeros if unknown."""
        identity = f"{self.ids}:{self._said.serial if self._said else ''}"
        interfaces = "".join(f"u{code}" for code in self.interface_codes) or "?******"
        return f"{identity}:{interfaces}"

    @property
    def ids(self) -> str:
        """`VID:PID`; zeros if unknown."""
        return f"{self._said.vendor}:{self._said.product}" if self._said else UNKNOWN_IDS

    @property
    def description(self) -> str:
        """One line for the user, also where DeviceInterface fails for want of usb.ids."""
        try:
            return super().description
        except OSError:
            return f"USB device: {self.manufacturer} {self.name}"

    @property
    def attachment(self) -> Qube | None:
        """The qube that has it now: one that exists, runs, and may have it."""
        name = self._bus_id and records.frontend(self.backend_domain, self._bus_id)
        if not name or name == self.backend_domain.name:
            return None
        holders = {} if self._holders is None else self._holders
        if name not in holders:
            holders[name] = self._holder(name)
        return holders[name]

    def _holder(self, name: DomainName) -> Qube | None:
        try:
            vm: Qube = self.backend_domain.app.domains[name]
        except KeyError:
            return None
        return vm if vm.klass not in ("AdminVM", "RemoteVM") and vm.is_running() else None

    @cached_property
    def _bus_id(self) -> BusId | None:
        return untrusted.bus_id(self.port_id)

    @property
    def present(self) -> bool:
        """Whether there is a device in the port, whatever it says."""
        return self._desc is not None

    @cached_property
    def _desc(self) -> bytes | None:
        return self._read("desc")

    @cached_property
    def _said(self) -> Description | None:
        return untrusted.description(self._desc)

    @cached_property
    def interface_codes(self) -> list[str]:
        """`CCSSPP` of each interface; none if the backend does not say."""
        return untrusted.interfaces(self._read("interfaces"))

    @cached_property
    def _names(self) -> tuple[str | None, str | None]:
        if self._said is None:
            return None, None
        return self._usb_ids.names(self._said.vendor, self._said.product)

    def _read(self, entry: str) -> bytes | None:
        if self._bus_id is None:
            return None
        return records.read(self.backend_domain, self._bus_id, entry)
