# SPDX-License-Identifier: GPL-2.0-or-later
"""The extension: which of qubesd's events lead where. Logic is in the modules beside it.

Extension.__new__ (qubes/ext/__init__.py) finds handlers in this very class, not in its parents.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from usb_proxy.dom0 import kinds, questions, records, restart, untrusted
from usb_proxy.dom0.assignments import AutoAttach, assigned, assignments
from usb_proxy.dom0.attachments import Attachments
from usb_proxy.dom0.device import DEVICE_CLASS, USBDevice
from usb_proxy.dom0.looks import Looks
from usb_proxy.dom0.notices import qube
from usb_proxy.dom0.pace import Pace
from usb_proxy.dom0.policy import RUN_POLICY, CallRules
from usb_proxy.dom0.qubesd import (
    Extension,
    Port,
    QubesException,
    UnrecognizedDevice,
    VirtualDevice,
    handler,
    is_preload,
    local_qubes,
)
from usb_proxy.dom0.requests import require_possible
from usb_proxy.dom0.wishes import Wishes
from usb_proxy.errors import sentence

if TYPE_CHECKING:
    from usb_proxy.dom0.qubesd import Assignment, Qube
    from usb_proxy.idents import DomainName

START_SECONDS = 10.0
"""A starting qube waits this long for the first try to attach what is assigned to it."""


_BY_ITSELF: ContextVar[bool] = ContextVar("by itself", default=False)
"""Whether a request is this extension's own, and not the user's; tasks inherit it."""


class USBProxyExtension(Extension):
    """USB devices of qubes, class `usb`."""

    policy_folder = RUN_POLICY

    def __init__(self) -> None:
        super().__init__()
        self._begin()

    def _begin(self) -> None:
        """Nothing is known."""
        self.rules = CallRules(self.policy_folder)
        self.pace = Pace()
        self.wishes = Wishes()
        self._resuming: set[asyncio.Task[None]] = set()
        self._modes: dict[tuple[str, VirtualDevice], Any] = {}
        """How a device was assigned whose mode is being changed."""
        self.looks = Looks(self.pace, self.wishes, self._appeared, self._overdue)
        self.assignments = AutoAttach(
            self._attach_assigned,
            questions.ask,
            self.pace,
            self.wishes,
            self.looks.off,
        )
        self.attachments = Attachments(self.rules, self.looks, self.wishes)

    def _appeared(self, device: USBDevice) -> None:
        self.assignments.start(device)

    def _overdue(self, app: Any) -> None:
        """The computer did not suspend, and does not say so: go on as if it had resumed."""
        for vm in local_qubes(app):
            if vm.klass != "AdminVM":  # one that libvirt fails on hurts no other
                asyncio.get_running_loop().call_soon(self.on_domain_resumed, vm, "")

    # Listing: synchronous, and QubesDB alone is read (qubes/devices.py).

    @handler("device-list:usb")
    def on_device_list(self, vm: Qube, _event: str, **_kwargs: object) -> Iterator[USBDevice]:
        """The devices that a qube exposes."""
        holders: dict[DomainName, Qube | None] = {}
        for port in records.ports(vm):
            yield USBDevice.at(vm, port, holders)

    @handler("device-get:usb")
    def on_device_get(
        self, vm: Qube, _event: str, port_id: str, **_kwargs: object
    ) -> Iterator[USBDevice]:
        """The device in one port of a qube, if there is one."""
        port = untrusted.bus_id(port_id)
        if port is not None and vm.is_running():
            device = USBDevice.at(vm, port)
            if device.present:
                yield device

    @handler("device-list-attached:usb")
    def on_device_list_attached(
        self, vm: Qube, _event: str, **_kwargs: object
    ) -> Iterator[tuple[USBDevice, dict[str, str]]]:
        """The devices that a qube has from others."""
        if vm.is_running():
            for device in self.looks.attached(vm):
                yield device, {}

    # Requests: the work is done before, the event itself only says that it is done.

    @handler("device-pre-attach:usb")
    async def on_device_pre_attach(
        self, vm: Qube, _event: str, device: Any, options: dict[str, str], **_kwargs: object
    ) -> None:
        """Attach a device; the exception's text is what the user reads."""
        if not isinstance(device, USBDevice):
            raise UnrecognizedDevice(sentence("UP-901", device=device.port))
        require_possible(vm, device.port, options)
        if not _BY_ITSELF.get():
            self.assignments.stop(device.port)
        await self.attachments.attach(vm, device)

    @handler("device-pre-detach:usb")
    async def on_device_pre_detach(
        self, vm: Qube, _event: str, port: Port, **_kwargs: object
    ) -> None:
        """Detach a device; the exception's text is what the user reads."""
        self.assignments.stop(port)
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

    @handler("device-pre-assign:usb")
    async def on_device_pre_assign(
        self, vm: Qube, _event: str, device: Any, options: dict[str, str], **_kwargs: object
    ) -> None:
        """Refuse what could never be attached: it is in memory already (qubes/devices.py)."""
        devices = vm.devices["usb"]
        equal = [one for one in devices.get_assigned_devices() if one.virtual_device == device]
        # One that is not the very same is older, and only its mode is to change.
        new = [one for one in equal if one.virtual_device is device]
        try:
            require_possible(vm, device.port, options, device.device_id)
            if any(one.mode.value == "required" for one in new):
                raise QubesException(sentence("UP-946"))
        except QubesException:
            for assignment in new:
                await devices.unassign(assignment)
            raise
        if equal and not new:
            self._modes[vm.name, device] = equal[0].mode

    @handler("device-assignment-changed:usb")
    async def on_device_assignment_changed(
        self, vm: Qube, _event: str, device: VirtualDevice, **_kwargs: object
    ) -> None:
        """The mode of an assignment was changed: one that cannot be is changed back."""
        mode, devices = self._modes.pop((vm.name, device), None), vm.devices["usb"]
        equal = [one for one in devices.get_assigned_devices() if one.virtual_device == device]
        if mode and mode.value != "required" and [o for o in equal if o.mode.value == "required"]:
            await devices.update_assignment(device, mode)
            raise QubesException(sentence("UP-946"))

    @handler("domain-start")
    async def on_domain_start(self, vm: Qube, _event: str, **_kwargs: object) -> None:
        """Attach what is assigned; an exception here would end the qube (qubes/vm/qubesvm.py)."""
        if is_preload(vm):
            return
        tried = [asyncio.ensure_future(event.wait()) for event in self._attach_all(vm, starts=True)]
        if tried:
            _, late = await asyncio.wait(tried, timeout=START_SECONDS)
            for task in late:
                task.cancel()

    @handler("domain-resumed", "domain-unpaused", "property-reset:is_preload")
    def on_domain_resumed(self, vm: Qube, _event: str, **_kwargs: object) -> None:
        """Attach again what suspend took away; a qube that starts is unpaused, too, but not ready.

        One that suspends by itself is resumed, the others are unpaused (QubesVM.resume). To a
        preloaded disposable this happens before somebody uses it, and once more then.
        """
        if vm.get_power_state() == "Running" and not is_preload(vm):
            task = asyncio.ensure_future(self._resume(vm))
            self._resuming.add(task)
            task.add_done_callback(self._resuming.discard)

    async def _resume(self, vm: Qube) -> None:
        await self.looks.resumed(vm)
        self.assignments.resume()
        for port, name in list(self.wishes.asleep(vm.name)):
            frontend = qube(vm, name)
            if frontend is None or not self.looks.off(frontend, port.backend_domain):
                self.wishes.wanted(port)
                self.assignments.start(USBDevice(port), frontend)
        self._attach_all(vm, starts=False)

    def _attach_all(self, vm: Qube, *, starts: bool) -> list[asyncio.Event]:
        """Start attaching what is assigned to a qube, and what it exposes: no QubesDB is read."""
        tried = []
        try:
            own = any(assignments(vm)) or kinds.has_patterns(vm)
            for name, known in self.looks.known.items():
                backend = vm if name == vm.name else qube(vm, name) if own else None
                for port, seen in known.items():
                    if backend is None or seen.frontend is not None:
                        continue
                    virtual = VirtualDevice(Port(backend, port, DEVICE_CLASS), seen.device_id)
                    if backend != vm and not assigned(vm, virtual):
                        self.assignments.tell_mismatch(vm, virtual)
                        continue
                    if starts:
                        self.wishes.wanted(virtual.port)
                    starting = vm if starts and backend != vm else None
                    tried.append(self.assignments.start(USBDevice(virtual.port), starting))
        except Exception as error:
            vm.log.warning("%s", sentence("UP-923", qube=vm.name, reason=error))
        return tried

    async def _attach_assigned(self, vm: Qube, device: USBDevice, assignment: Assignment) -> None:
        """What DeviceCollection.attach does, without its check for what is attached."""
        _BY_ITSELF.set(True)
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
            self.looks.load(vm)
            restart.tell(vm, self.looks.known[vm.name], self.wishes)
            if vm.klass == "AdminVM" and not vm.app.vmm.offline_mode:
                try:
                    self.rules.clear()
                except QubesException as error:  # qubesd has to start all the same
                    vm.log.error("%s", error)

    @handler(f"domain-qdb-change:{untrusted.ROOT}")
    def on_qdb_change(self, vm: Qube, _event: str, **_kwargs: object) -> None:
        """A backend changed something; it says so after each change."""
        self.looks.changed(vm)

    @handler("domain-pre-shutdown")
    def on_domain_pre_shutdown(self, vm: Qube, _event: str, **_kwargs: object) -> None:
        """A qube is told to shut down."""
        self.wishes.ending(vm.name)

    @handler("domain-shutdown-failed")
    def on_domain_shutdown_failed(self, vm: Qube, _event: str, **_kwargs: object) -> None:
        """It does not."""
        self.wishes.goes_on(vm.name)

    @handler("domain-shutdown")
    async def on_domain_shutdown(self, vm: Qube, _event: str, **_kwargs: object) -> None:
        """A qube ended, or was killed."""
        self.assignments.forget(vm.name)
        await self.attachments.stopped(vm)
        for port in self.wishes.ended(vm.name):
            self.assignments.start(USBDevice(port))

    @handler("domain-delete", system=True)
    def on_domain_delete(self, _app: object, _event: str, vm: Qube, **_kwargs: object) -> None:
        """A qube was removed, as each disposable is."""
        self.looks.forget(vm)
        self.assignments.forget(vm.name)

    @handler("qubes-close", system=True)
    def on_qubes_close(self, _app: object, _event: str, **_kwargs: object) -> None:
        """Keep no qube: the platform's tests look for what is left (qubes/tests/__init__.py)."""
        self.attachments.close()
        self._begin()
