# SPDX-License-Identifier: GPL-2.0-or-later
"""Attaching what is assigned, device by device: none waits for another, or falls with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from usb_proxy.dom0 import kinds
from usb_proxy.dom0.device import DEVICE_CLASS, USBDevice
from usb_proxy.dom0.qubesd import Port, QubesException, is_preload, local_qubes
from usb_proxy.dom0.requests import NOBODY, require_possible
from usb_proxy.dom0.services import ServiceError
from usb_proxy.dom0.tries import Tries
from usb_proxy.errors import sentence

if TYPE_CHECKING:
    from usb_proxy.dom0.pace import Pace
    from usb_proxy.dom0.qubesd import Assignment, Qube, VirtualDevice
    from usb_proxy.dom0.questions import Ask
    from usb_proxy.dom0.wishes import Wishes

TRY_SECONDS = 0.002
"""What a try counts: a process is started, and a rule written."""

_ONCE_MORE = ("[UP-616]", "[UP-909]")
"""A device that says nothing, or a qube: each try takes long, and keeps other devices waiting."""


def assignments(vm: Qube) -> Iterable[Assignment]:
    """All of a qube. A collection that nobody has asked for has none, and is costly to make."""
    collection = vm.devices.get(DEVICE_CLASS)
    found: Iterable[Assignment] = collection.get_assigned_devices() if collection else ()
    return found


def assigned(vm: Qube, device: VirtualDevice) -> Assignment | None:
    """The most specific assignment of a device to a qube.

    Port and identity come before port, port before identity (doc/qubes-devices.rst), then its kind.
    """
    unknown = device.device_id == NOBODY  # what could be anything is known by its port alone
    found = [a for a in assignments(vm) if a.matches(device) and not (unknown and a.port_id == "*")]
    if found:
        return max(found, key=lambda a: (a.port_id != "*", a.device_id != "*"))
    return kinds.assigned(vm, device)


def _ready(vm: Qube) -> bool:
    """Whether a qube can be called; when it can, what is assigned to it is looked at again."""
    return vm.get_power_state() == "Running" and not is_preload(vm)


class _Chain:
    """What is being done for one port, one thing after the other."""

    def __init__(self, owner: AutoAttach) -> None:
        self._owner = owner
        self._next: list[tuple[USBDevice, Qube | None]] = []
        self._wake = asyncio.Event()
        self.tried = asyncio.Event()
        """Set after the first try, and before a question to the user."""
        self._question: asyncio.Future[str | None] | None = None

    def add(self, device: USBDevice, starting: Qube | None) -> None:
        """A device appeared (again), or a qube starts: the tries start anew."""
        if starting is None:
            self._next.clear()
        elif self._question:
            self._question.cancel()
        self._next.append((device, starting))
        self._wake.set()

    def stop(self) -> None:
        """The user does something with the device: that counts."""
        self._next.clear()
        self._wake.set()

    async def run(self) -> None:
        while self._next:
            device, starting = self._next.pop(0)
            self._wake.clear()
            try:
                await self._follow(device, starting)
            except Exception as error:
                text = sentence("UP-925", port=device.port, reason=error)
                device.backend_domain.log.warning("%s", text)
        self.tried.set()

    async def _follow(self, device: USBDevice, starting: Qube | None) -> None:
        vm = await self._choose(device, starting)
        told, slow = "", False
        pauses = self._owner.tries.pauses(device.port)
        while vm is not None and pauses:
            await self._pause(pauses.pop(0))
            if self._wake.is_set():
                return
            async with self._owner.pace.turn(device.backend_domain.name, TRY_SECONDS):
                assignment = self._still(vm, device)
            if assignment is None:
                return
            error = await self._owner.attempt(vm, device, assignment)
            if error is None:
                return
            text = sentence("UP-918", port=device.port, qube=vm.name, quoted=_unescaped(error))
            if text != told:
                vm.log.warning("%s", text)
                told = text
            self.tried.set()
            if not _may_help(error):
                return
            if any(mark in str(error) for mark in _ONCE_MORE):
                pauses = pauses[:1] if not slow else []
                slow = True
        if vm is not None and not self._wake.is_set():
            vm.log.warning("%s", sentence("UP-919", port=device.port, qube=vm.name))

    async def _choose(self, device: USBDevice, starting: Qube | None) -> Qube | None:
        async with self._owner.pace.turn(device.backend_domain.name):
            found = self._owner.candidates(device, starting)
            self._owner.tries.begin(device.port, anew=starting is not None)
        if len(found) == 1:
            vm, assignment = next(iter(found.items()))
            if assignment.mode.value != "ask-to-attach":
                return vm
        if not found or device.attachment is not None or not self._owner.wanted(device.port):
            return None
        self.tried.set()
        name = await self._ask(device, found)
        if name is None:
            device.backend_domain.log.warning("%s", sentence("UP-949", port=device.port))
            return None
        chosen = next((vm for vm in found if vm.name == name), None)
        if chosen is None and not self._wake.is_set():
            self._owner.let_go(device.port, device.device_id, "")
        return chosen

    async def _ask(self, device: USBDevice, found: Mapping[Any, Assignment]) -> str | None:
        """The user's answer, or none if the question is in vain by now."""
        question = self._question = asyncio.ensure_future(self._owner.confirm(device, found))
        await asyncio.wait([question])
        self._question = None
        return "" if question.cancelled() else question.result()

    def _still(self, vm: Qube, device: USBDevice) -> Assignment | None:
        """The assignment, as long as it stands, and the device is there, free and wanted."""
        now = USBDevice(device.port)
        if now.device_id != device.device_id or not self._owner.wanted(device.port):
            return None
        if not (_ready(vm) and _ready(device.backend_domain)):
            return None
        if now.attachment is not None:
            return None
        if self._owner.suspending(device.backend_domain):
            self._owner.postponed[device.port] = device
            return None
        return assigned(vm, now)

    async def _pause(self, seconds: float) -> None:
        """Pause, unless there is something else to do."""
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass


def _may_help(error: Exception) -> bool:
    """Whether what failed may succeed when it is tried again."""
    if isinstance(error, ServiceError):
        return not error.hopeless
    return not isinstance(error, QubesException)


def _unescaped(error: Exception) -> str:
    """A text for a log: the client alone formats it with `%`."""
    return str(error).replace("%%", "%")


class AutoAttach:
    """All ports that have something to be attached."""

    def __init__(
        self,
        attach: Callable[[Qube, USBDevice, Assignment], Awaitable[None]],
        confirm: Ask,
        pace: Pace,
        wishes: Wishes,
        suspending: Callable[[Qube], bool],
    ) -> None:
        self._attach = attach
        self.confirm = confirm  # asks the user
        self.pace = pace
        self.wanted, self.let_go = wishes.free, wishes.let_go
        self.suspending = suspending
        self.postponed: dict[Port, USBDevice] = {}
        """What appeared while the computer was about to suspend."""
        self._told: dict[tuple[str, Port | None, str], str] = {}
        self.tries = Tries()
        self._chains: dict[Port, _Chain] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, device: USBDevice, starting: Qube | None = None) -> asyncio.Event:
        """Attach a device where it is assigned, if anywhere; the event tells of the first try.

        A qube that is `starting` gets it, whoever else has it assigned.
        """
        chain = self._chains.get(device.port)
        if chain is None:
            chain = self._chains[device.port] = _Chain(self)
            task = asyncio.ensure_future(self._run(device.port, chain))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        chain.add(device, starting)
        return chain.tried

    async def _run(self, port: Port, chain: _Chain) -> None:
        try:
            await chain.run()
        finally:
            del self._chains[port]

    def stop(self, port: Port) -> None:
        """The user does something with the device in a port."""
        self.postponed.pop(port, None)
        if chain := self._chains.get(port):
            chain.stop()

    def resume(self) -> None:
        """The computer resumed."""
        postponed, self.postponed = self.postponed, {}
        for device in postponed.values():
            self.start(device)

    def candidates(self, device: USBDevice, starting: Qube | None) -> dict[Qube, Assignment]:
        """The qubes that get a device, if they are asked for: assignments first, then libvirt."""
        found = {}
        backend = device.backend_domain
        for vm in (starting,) if starting else local_qubes(backend.app):
            try:
                if vm.klass == "AdminVM" or vm == backend:
                    continue
                if (assignment := assigned(vm, device)) is None:
                    self.tell_mismatch(vm, device)
                for port, text in kinds.faults(vm, device):
                    # What is said of a device is not so where it is assigned.
                    if (port is None or assignment is None) and _ready(vm):
                        self._tell(vm, port, text)
                if assignment and _ready(vm) and self._possible(vm, device, assignment):
                    found[vm] = assignment
            except Exception as error:  # of one qube only, such as libvirt's
                vm.log.warning("%s", sentence("UP-923", qube=vm.name, reason=error))
        return found

    def _possible(self, vm: Qube, device: USBDevice, assignment: Assignment) -> bool:
        """Whether it is worth a try; what can never be attached is told once."""
        try:
            require_possible(vm, device.port, assignment.options)
        except QubesException as error:
            quoted = _unescaped(error)
            text = sentence("UP-918", port=device.port, qube=vm.name, quoted=quoted)
            self._tell(vm, device.port, text)
            return False
        return True

    def tell_mismatch(self, vm: Qube, device: VirtualDevice) -> None:
        """Tell once that another device is in an assigned port."""
        place = device.port_id, device.backend_domain
        others = (a for a in assignments(vm) if (a.port_id, a.backend_domain) == place)
        if (other := next(others, None)) and vm.is_running():
            came, wanted = device.device_id, other.device_id
            text = sentence("UP-920", port=device.port, device=came, qube=vm.name, wanted=wanted)
            self._tell(vm, device.port, text)

    def _tell(self, vm: Qube, port: Port | None, text: str) -> None:
        """Tell once, until it is another sentence of the same id."""
        key = vm.name, port, text.rpartition(" ")[2]
        if self._told.get(key) != text:
            self._told[key] = text
            vm.log.warning("%s", text)

    def forget(self, name: str) -> None:
        """A qube ended: what was told of it may be told again."""
        for vm, port, fault in list(self._told):
            if name in (vm, port and port.backend_domain.name):
                del self._told[vm, port, fault]
        self.tries.forget(name)

    async def attempt(
        self, vm: Qube, device: USBDevice, assignment: Assignment
    ) -> Exception | None:
        """Try to attach; what failed, or None."""
        try:
            await self._attach(vm, device, assignment)
        except Exception as error:
            return error
        self.tries.attached(device.port)
        return None
