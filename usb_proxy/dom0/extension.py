# SPDX-License-Identifier: GPL-2.0-or-later
"""The extension: which of qubesd's events lead where. Logic is in the modules beside it.

Extension.__new__ (qubes/ext/__init__.py) finds handlers in this very class, not in its parents.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from usb_proxy.dom0 import records, untrusted
from usb_proxy.dom0.assignments import AutoAttach, wanted
from usb_proxy.dom0.attachments import Attachments
from usb_proxy.dom0.device import USBDevice
from usb_proxy.dom0.policy import RUN_POLICY, CallRules
from usb_proxy.dom0.qubesd import (
    Extension,
    Port,
    QubesException,
    QubesValueError,
    UnrecognizedDevice,
    confirm_device_attachment,
    handler,
    local_qubes,
)
from usb_proxy.errors import sentence

if TYPE_CHECKING:
    from usb_proxy.dom0.qubesd import Assignment, Qube

START_SECONDS = 10.0
"""A starting qube waits this long for the first try to attach what is assigned to it."""


class USBProxyExtension(Extension):
    """USB devices of qubes, class `usb`."""

    policy_folder = RUN_POLICY

    def __init__(self) -> None:
        super().__init__()
        self.rules = CallRules(self.policy_folder)
        self.assignments = AutoAttach(self._attach_assigned, confirm_device_attachment)
        self.attachments = Attachments(self.rules, self.assignments.start)

    # Listing: synchronous, and QubesDB alone is read (qubes/devices.py).

    @handler("device-list:usb")
    def on_device_list(self, vm: Qube, _event: str, **_kwargs: object) -> Iterator[USBDevice]:
        """The devices that a qube exposes."""
        for port in records.ports(vm):
            yield USBDevice.at(vm, port)

    @handler("device-get:usb")
    def on_device_get(
        self, vm: Qube, _event: str, port_id: str, **_kwargs: object
    ) -> Iterator[USBDevice]:
        """The device in one port of a qube, if there is one."""
        port = untrusted.bus_id(port_id)
        if port is not None and records.read(vm, port, "desc") is not None:
            yield USBDevice.at(vm, port)

    @handler("device-list-attached:usb")
    def on_device_list_attached(
        self, vm: Qube, _event: str, **_kwargs: object
    ) -> Iterator[tuple[USBDevice, dict[str, str]]]:
        """The devices that a qube has from others."""
        for backend in local_qubes(vm.app):
            for port in records.ports(backend):
                if records.frontend(backend, port) == vm.name:
                    device = USBDevice.at(backend, port)
                    if device.attachment == vm:
                        yield device, {}

    # Requests: the work is done before, the event itself only says that it is done.

    @handler("device-pre-attach:usb")
    async def on_device_pre_attach(
        self, vm: Qube, _event: str, device: Any, options: dict[str, str], **_kwargs: object
    ) -> None:
        """Attach a device; the exception's text is what the user reads."""
        if not isinstance(device, USBDevice):
            raise UnrecognizedDevice(sentence("UP-901", device=device.port))
        if options:
            raise QubesValueError(sentence("UP-902", option=min(options)))
        await self.attachments.attach(vm, device)

    @handler("device-pre-detach:usb")
    async def on_device_pre_detach(
        self, vm: Qube, _event: str, port: Port, **_kwargs: object
    ) -> None:
        """Detach a device; the exception's text is what the user reads."""
        await self.attachments.detach(vm, port)

    @handler("device-attach:usb")
    def on_device_attach(self, vm: Qube, _event: str, device: USBDevice, **_kwargs: object) -> None:
        """It was told that a device is attached."""
        self.attachments.event(vm, device.port, detaching=False)

    @handler("device-detach:usb")
    def on_device_detach(self, vm: Qube, _event: str, port: Port, **_kwargs: object) -> None:
        """It was told that a device is detached."""
        self.attachments.event(vm, port, detaching=True)

    # Assignments.

    @handler("domain-start")
    async def on_domain_start(self, vm: Qube, _event: str, **_kwargs: object) -> None:
        """Attach what is assigned; an exception here would end the qube (qubes/vm/qubesvm.py)."""
        tried = [asyncio.ensure_future(event.wait()) for event in self._attach_all(vm)]
        if tried:
            _, late = await asyncio.wait(tried, timeout=START_SECONDS)
            for task in late:
                task.cancel()

    @handler("domain-resumed", "domain-unpaused")
    def on_domain_resumed(self, vm: Qube, _event: str, **_kwargs: object) -> None:
        """Attach again what suspend took away; a qube that starts is unpaused, too, but not ready.

        One that suspends by itself is resumed, the others are unpaused (QubesVM.resume).
        """
        if vm.get_power_state() == "Running":
            self._attach_all(vm)

    def _attach_all(self, vm: Qube) -> list[asyncio.Event]:
        """Start attaching what is assigned to a qube, and what it exposes."""
        tried = []
        try:
            for backend in local_qubes(vm.app):
                for port in records.ports(backend):
                    device = USBDevice.at(backend, port)
                    if backend == vm or wanted(vm, device):
                        tried.append(self.assignments.start(device))
        except Exception as error:
            vm.log.warning("%s", sentence("UP-923", qube=vm.name, reason=error))
        return tried

    async def _attach_assigned(self, vm: Qube, device: USBDevice, assignment: Assignment) -> None:
        """What DeviceCollection.attach does, without its check for what is attached."""
        options = assignment.options
        await vm.fire_event_async(
            "device-pre-attach:usb", pre_event=True, device=device, options=options
        )
        await vm.fire_event_async("device-attach:usb", device=device, options=options)

    # What happens to qubes.

    @handler("domain-init", "domain-load")
    def on_domain_init_load(self, vm: Qube, event: str, **_kwargs: object) -> None:
        """Watch a qube; dom0's is loaded once, when qubesd starts."""
        vm.watch_qdb_path(untrusted.ROOT)
        if event == "domain-load":
            self.attachments.load(vm)
            if vm.klass == "AdminVM" and not vm.app.vmm.offline_mode:
                try:
                    self.rules.clear()
                except QubesException as error:  # qubesd has to start all the same
                    vm.log.error("%s", error)

    @handler(f"domain-qdb-change:{untrusted.ROOT}")
    def on_qdb_change(self, vm: Qube, _event: str, **_kwargs: object) -> None:
        """A backend changed something; it says so after each change."""
        self.attachments.changed(vm)

    @handler("domain-shutdown")
    async def on_domain_shutdown(self, vm: Qube, _event: str, **_kwargs: object) -> None:
        """A qube ended, or was killed."""
        await self.attachments.stopped(vm)

    @handler("domain-delete", system=True)
    def on_domain_delete(self, _app: object, _event: str, vm: Qube, **_kwargs: object) -> None:
        """A qube was removed, as each disposable is."""
        self.attachments.forget(vm)

    @handler("qubes-close", system=True)
    def on_qubes_close(self, _app: object, _event: str, **_kwargs: object) -> None:
        """qubesd ends."""
        self.assignments.stop()
        self.rules.clear()
