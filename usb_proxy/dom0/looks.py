# SPDX-License-Identifier: GPL-2.0-or-later
"""Which device is where, as the backends' QubesDB tells it: looking, and telling what changed.

A backend can change its entries at any rate. So all that follows from that is done port by port,
in turns (`Pace`), and each port's change is told as soon as that port was read.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Container, Iterator
from typing import TYPE_CHECKING

from usb_proxy.dom0 import ledger, records, untrusted
from usb_proxy.dom0.assignments import assigned
from usb_proxy.dom0.claims import Claims
from usb_proxy.dom0.device import DEVICE_CLASS, USBDevice
from usb_proxy.dom0.notices import Notices, Task, fire, qube
from usb_proxy.dom0.qubesd import Port
from usb_proxy.dom0.suspending import SUSPENDING, Suspending
from usb_proxy.errors import sentence

if TYPE_CHECKING:
    from usb_proxy.dom0.pace import Pace
    from usb_proxy.dom0.qubesd import Qube
    from usb_proxy.dom0.wishes import Wishes

AT_ONCE_SECONDS = 0.005
"""A look begins at once, if nobody else's turn is due, and goes on in turns after this long."""

QUIET_SECONDS = (0.01, 0.1)
"""Between one look and the next: the first time, so that a device that is pulled and plugged in is
seen to be, and after that, so that a backend that writes all the time is not followed."""

_OFF = ("Paused", "Suspended")


class Looks:
    """All that is known; `appeared` is called with each device that is there, free and wanted."""

    def __init__(
        self,
        pace: Pace,
        wishes: Wishes,
        appeared: Callable[[USBDevice], object],
        overdue: Callable[[object], object],
    ) -> None:
        self.known: dict[str, dict[str, ledger.Seen]] = {}
        """By backend and port; what was told of it, and no more."""
        self.held: Container[Port] = ()
        """Ports of which nothing is told now."""
        self.looked: Callable[[Port], object] = lambda _port: None
        """Called where one of them would have been looked at."""
        self.suspending = SUSPENDING
        self._suspends = Suspending(overdue)
        self._pace = pace
        self._wishes = wishes
        self._notices = Notices(pace, appeared)
        self._claims = Claims()
        self.attached = self._claims.attached
        self._changed: set[str] = set()
        self._followed: dict[str, asyncio.Task[None]] = {}
        self._reasons: set[str] = set()
        """The backends that say why an attachment ended."""
        records.reset()

    def load(self, backend: Qube) -> None:
        """Take what there is as known: qubesd has just started, or the qube is new."""
        known = self.known[backend.name] = {
            str(port): seen
            for port in records.ports(backend)
            if (seen := self._see(backend, port)) is not None
        }
        for name, seen in known.items():
            port = Port(backend, name, DEVICE_CLASS)
            if self.learn(port) == "detached" and not seen.frontend:
                asleep = self.suspending.exists()
                self._wishes.let_go(port, seen.device_id, "", asleep=asleep)

    def learn(self, port: Port) -> str | None:
        """Why the attachment of a device ended, or would end; its backend says so, or never does.

        One that does says it from the first moment on (usb_proxy/backend/qubesdb.py).
        """
        reason = records.reason(port.backend_domain, port.port_id)
        if reason is not None:
            self._reasons.add(port.backend_domain.name)
        return reason

    def forget(self, vm: Qube) -> None:
        """A qube exists no more."""
        self.known.pop(vm.name, None)
        self._claims.changed(vm.name)
        self._reasons.discard(vm.name)
        self._wishes.forget(vm.name)
        self._pace.forget(vm.name)
        records.forget(vm.name)

    def changed(self, backend: Qube) -> None:
        """QubesDB of a backend changed."""
        self._claims.changed(backend.name)
        self._changed.add(backend.name)
        if backend.name not in self._followed:
            look = self._look(backend)
            done = self._pace.free(backend.name) and self._at_once(backend, look)
            following = asyncio.ensure_future(self._follow(backend, None if done else look))
            self._followed[backend.name] = following

    def _at_once(self, backend: Qube, look: Iterator[None]) -> bool:
        clock = asyncio.get_running_loop().time
        started = clock()
        done = True
        for _ in look:
            if clock() - started > AT_ONCE_SECONDS:
                done = False
                break
        self._pace.spent(backend.name, clock() - started)
        return done

    async def _follow(self, backend: Qube, look: Iterator[None] | None) -> None:
        """End the look that was begun, and look again as long as there are changes."""
        name = backend.name
        try:
            if look is not None:
                await self._turns(name, look)
            for quiet in itertools.chain(QUIET_SECONDS, itertools.repeat(QUIET_SECONDS[-1])):
                await asyncio.sleep(quiet)
                if name not in self._changed:
                    break
                await self._turns(name, self._look(backend))
        finally:
            del self._followed[name]

    async def _turns(self, name: str, look: Iterator[None]) -> None:
        more = True
        while more:
            async with self._pace.turn(name):
                more = next(look, self) is None

    def _look(self, backend: Qube) -> Iterator[None]:
        """Look at one port after the other."""
        name = backend.name
        self._changed.discard(name)
        listed = [str(port) for port in records.ports(backend)]
        crowd = len(listed) >= untrusted.DEVICES_LIMIT
        another = False
        for port in sorted({*listed, *self.known.setdefault(name, {})}):
            gone = crowd and port not in listed
            another |= self._refresh(Port(backend, port, DEVICE_CLASS), gone=gone)
            yield
        if another:
            fire(backend, f"device-list-change:{DEVICE_CLASS}")

    def refresh(self, port: Port) -> Task | None:
        """Look at one port now; the task that tells what was seen, if it is not done."""
        if self._refresh(port):
            fire(port.backend_domain, f"device-list-change:{DEVICE_CLASS}")
        return self._notices.pending(port)

    def _refresh(self, port: Port, *, gone: bool = False, asleep: bool = False) -> bool:
        """Look at one port; whether another device is there, or none, or the first."""
        backend = port.backend_domain
        if port in self.held:
            self.looked(port)
            return False
        old = self.known.setdefault(backend.name, {}).get(port.port_id)
        try:
            new = None if gone else self._see(backend, port.port_id)
            change = ledger.change(port.port_id, old, new)
            free = change is not None and self._is_free(port, old, new, asleep)
        except Exception as error:  # libvirt's, of one of the frontends
            records.silent(backend, error)
            return False
        if change is None:
            return False
        self._tell(backend, change, new, free=free)
        return change.added or change.removed

    def _tell(
        self, backend: Qube, change: ledger.Change, new: ledger.Seen | None, *, free: bool
    ) -> Task:
        self._claims.changed(backend.name)
        known = self.known.setdefault(backend.name, {})
        known.pop(change.port, None)
        if new is not None:
            known[change.port] = new
        return self._notices.tell(backend, change, free=free)

    @staticmethod
    def _see(backend: Qube, port: str) -> ledger.Seen | None:
        device = USBDevice.at(backend, port)
        if not device.present:
            return None
        vm = device.attachment
        return ledger.Seen(device.device_id, None if vm is None else vm.name)

    def _is_free(
        self, port: Port, old: ledger.Seen | None, new: ledger.Seen | None, asleep: bool
    ) -> bool:
        """Whether a device that has just changed may be attached by itself."""
        if new is None:
            self._wishes.left(port)
            return False
        if old is None or old.device_id != new.device_id:
            self._wishes.came(port, new.device_id)
        elif old.frontend and not new.frontend:
            self._ended(port, old, asleep)
        if new.frontend:
            self.learn(port)
            self._wishes.wanted(port, new.frontend)
            return False
        return self._wishes.free(port)

    def _ended(self, port: Port, old: ledger.Seen, asleep: bool) -> None:
        """A device was given back, and dom0 has not asked for it: find out whether someone has."""
        backend = port.backend_domain
        vm = qube(backend, old.frontend)
        reason = self.learn(port)
        if vm is None or not vm.is_running():
            return
        if (other := self._wishes.of(port)) is not None:
            if other == vm.name or not assigned(vm, USBDevice(port)):
                return
            self._wishes.wanted(port)  # this one has had it since
        if reason in ("unplugged", "died"):
            return
        # One that the user has paused gives nothing back: that is the backend's user then.
        asleep = asleep or self._suspends.on(self.suspending, backend)
        asleep = asleep or "Suspended" in (backend.get_power_state(), vm.get_power_state())
        if asleep or reason == "detached":
            self._wishes.let_go(port, old.device_id, vm.name, asleep=asleep, asked=False)
        elif backend.name not in self._reasons:
            # A backend that always tells, and has not, has lost its entries with the device.
            self._wishes.let_go(port, old.device_id, vm.name, asked=False)
            if assigned(vm, USBDevice(port)):
                vm.log.warning("%s", sentence("UP-930", port=port, qube=vm.name))

    def off(self, side: Qube, *others: Qube) -> bool:
        """Whether the computer, or one of these qubes, is suspended, or about to be."""
        if self._suspends.on(self.suspending, side):
            return True
        return any(vm.get_power_state() in _OFF for vm in (side, *others))

    async def resumed(self, vm: Qube) -> None:
        """What a qube gave back on its way into suspend may be seen only now."""
        for name, known in list(self.known.items()):
            backend = qube(vm, name)
            for port, seen in list(known.items()):
                if backend and seen.frontend and vm.name in (name, seen.frontend):
                    async with self._pace.turn(name):
                        self._refresh(Port(backend, port, DEVICE_CLASS), asleep=True)

    async def stopped(self, vm: Qube) -> None:
        """A qube ended: what it had and what it exposed is told before this returns."""
        tasks = []
        exposed = bool(self.known.get(vm.name))
        for name, known in list(self.known.items()):
            backend = vm if name == vm.name else qube(vm, name)
            for port, old in list(known.items()):
                if backend is None or Port(backend, port, DEVICE_CLASS) in self.held:
                    continue
                if backend == vm:
                    new, free = None, False
                elif old.frontend == vm.name:
                    records.end(backend, port, vm.name)
                    new, free = old._replace(frontend=None), True
                else:
                    continue
                change = ledger.change(port, old, new)
                if change is not None:
                    tasks.append(self._tell(backend, change, new, free=free))
        if exposed:
            fire(vm, f"device-list-change:{DEVICE_CLASS}")
            self._wishes.forget(vm.name)
            records.forget(vm.name)
        await asyncio.gather(*tasks)
