# SPDX-License-Identifier: GPL-2.0-or-later
# ruff: noqa: D101, D102, D103 (what these are is told where they are)
"""The part of qubesd that is used here, with types: the one door to `qubes`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping
    from typing import Protocol, TypeVar

    F = TypeVar("F", bound=Callable[..., object])

    class Qube(Protocol):
        """qubes/vm/qubesvm.py and qubes/vm/adminvm.py; a RemoteVM has only the first three."""

        name: str
        klass: str
        app: Any
        devices: Any
        features: Any
        log: Any
        virt_mode: str
        untrusted_qdb: Any

        def is_running(self) -> bool: ...
        def get_power_state(self) -> str: ...
        def watch_qdb_path(self, path: str) -> None: ...
        def fire_event(self, event: str, pre_event: bool = ..., **kwargs: object) -> object: ...
        async def fire_event_async(
            self, event: str, pre_event: bool = ..., **kwargs: object
        ) -> object: ...
        async def run_service_for_stdio(
            self, *args: str, **kwargs: object
        ) -> tuple[bytes | None, bytes | None]: ...

    class QubesException(Exception):
        """Its text is shown to the user (qubes/exc.py)."""

    class QubesValueError(QubesException, ValueError): ...

    class DeviceAlreadyAttached(QubesException, KeyError): ...

    class DeviceNotAssigned(QubesException, KeyError): ...

    class UnrecognizedDevice(QubesException, ValueError): ...

    class QubesVMNotRunningError(QubesException):
        def __init__(self, vm: Qube, msg: str | None = None) -> None: ...

    class Port:
        backend_domain: Qube
        port_id: str
        devclass: str

        def __init__(self, backend_domain: Qube, port_id: str, devclass: str) -> None: ...

    class DeviceInterface:
        def __init__(self, interface_encoding: str, devclass: str | None = None) -> None: ...

    class VirtualDevice:
        port: Port
        port_id: str
        backend_domain: Qube

        def __init__(self, port: Port, device_id: str | None = None) -> None: ...
        @property
        def device_id(self) -> str: ...

    class DeviceInfo(VirtualDevice):
        port: Port
        port_id: str
        backend_domain: Qube

        def __init__(self, port: Port) -> None: ...
        @property
        def vendor(self) -> str: ...
        @property
        def product(self) -> str: ...
        @property
        def description(self) -> str: ...
        @property
        def device_id(self) -> str: ...
        @property
        def interfaces(self) -> list[DeviceInterface]: ...

    def DeviceAssignment(
        device: VirtualDevice, frontend_domain: Qube, options: dict[str, str], mode: str
    ) -> Assignment: ...

    class Assignment(Protocol):
        port_id: str
        device_id: str
        backend_domain: Qube
        mode: Any
        options: dict[str, object]

        def matches(self, device: VirtualDevice) -> bool: ...

    class Extension: ...

    def handler(*events: str, system: bool = ...) -> Callable[[F], F]: ...
    def confirm_device_attachment(
        device: DeviceInfo, frontends: Mapping[Any, Assignment]
    ) -> Awaitable[str]: ...
else:
    import qubes.vm  # noqa: F401 (qubes.ext.handler looks it up)
    from qubes.device_protocol import (
        DeviceAssignment,
        DeviceInfo,
        DeviceInterface,
        Port,
        VirtualDevice,
    )
    from qubes.exc import (
        DeviceAlreadyAttached,
        DeviceNotAssigned,
        QubesException,
        QubesValueError,
        QubesVMNotRunningError,
        UnrecognizedDevice,
    )
    from qubes.ext import Extension, handler
    from qubes.ext.utils import confirm_device_attachment

__all__ = [
    "DeviceAlreadyAttached",
    "DeviceAssignment",
    "DeviceInfo",
    "DeviceInterface",
    "DeviceNotAssigned",
    "Extension",
    "Port",
    "QubesException",
    "QubesVMNotRunningError",
    "QubesValueError",
    "UnrecognizedDevice",
    "VirtualDevice",
    "confirm_device_attachment",
    "handler",
    "is_preload",
    "local_qubes",
]


def local_qubes(app: Any) -> Iterator[Qube]:
    """All qubes of this machine: a RemoteVM runs elsewhere and has no devices."""
    return (vm for vm in app.domains if vm.klass != "RemoteVM")


def is_preload(vm: Qube) -> bool:
    """Whether a disposable waits, hidden, for somebody to use it (qubes/vm/dispvm.py)."""
    return bool(getattr(vm, "is_preload", False))
