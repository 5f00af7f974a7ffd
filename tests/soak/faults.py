# SPDX-License-Identifier: GPL-2.0-or-later
"""What can happen while a device is being attached, and how an attachment can end."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

from tests.lab.errors import LabError
from tests.lab.guests import Guest
from tests.lab.qubes import Qubes
from tests.lab.router import Call, Completed

from .devices import Device, Disk, Wrong

SETTLE_SECONDS = 90
CALL_SECONDS = 150
LAST_OWN_CODE = 8
TAKEN = ("is attached already; detach it first", "is attached to this qube already")

_freezing = threading.Lock()


class Attachment:
    """A device, and what is done with it."""

    def __init__(self, qubes: Qubes, device: Device, chance: random.Random) -> None:
        self.qubes, self.device, self.chance = qubes, device, chance
        self.has_waited = False
        """Whether an attach was refused at first: what was before had not been given back yet."""

    # Calls, each checked for what it says.

    def start(self, service: str) -> Call:
        """Begin a call from dom0."""
        bus_id, lab = self.device.bus_id, self.qubes.lab
        if service == "take back":
            request = f"{bus_id}\n".encode()
            return lab.start_call(self.qubes.backend, "qubes.USBDetach", request)
        lab.revoke("qubes.USB", bus_id, self.qubes.frontend, self.qubes.backend)
        lab.allow("qubes.USB", bus_id, self.qubes.frontend, self.qubes.backend)
        # The argument is not used, but seen in the environment of the service.
        name = {"attach": f"qubes.USBAttach+{bus_id}", "detach": "qubes.USBDetach"}[service]
        return lab.start_call(self.qubes.frontend, name, f"sys-usb {bus_id}\n".encode())

    def finish(self, call: Call) -> Completed:
        """Its result: Wrong unless it is success, or one sentence with a code of ours."""
        try:
            done = call.wait(CALL_SECONDS)
        except LabError as error:
            raise Wrong(str(error)) from error
        said = done.stderr.decode("ascii", "replace")
        fine = said == "" if done.code == 0 else said.count("\n") == 1 < done.code <= LAST_OWN_CODE
        if not fine and done.code != -1:
            raise Wrong(f"code {done.code} with {said!r}")
        return done

    def call(self, service: str) -> Completed:
        """A call from beginning to end."""
        return self.finish(self.start(service))

    def must(self, service: str) -> None:
        """A call that has to succeed."""
        done = self.call(service)
        if done.code:
            raise Wrong(f"{service}: {done.stderr.decode(errors='replace').strip()}")

    def attach(self) -> None:
        """Attach; what was begun before may have to end first, and then it has to work."""
        done = self.call("attach")
        if done.code and any(text in done.stderr.decode() for text in TAKEN):
            self.has_waited = True
            self.settle()
            done = self.call("attach")
        if done.code:
            raise Wrong(f"attach: {done.stderr.decode(errors='replace').strip()}")
        if self.qubes.backend.run(f"cat {self._key()}", check=False).stdout != b"work":
            raise Wrong("attached, and QubesDB does not say so")

    def settle(self) -> None:
        """Wait until the device is back with its driver, and nothing in either qube says else."""
        bus_id = self.device.bus_id
        home = f"test -e /sys/bus/usb/drivers/usb/{bus_id}"
        lock = f"/run/qubes-usb-proxy/export-{bus_id}.lock"
        try:
            self.qubes.backend.wait_for(
                f"{home} && ! test -e {self._key()} && ! test -e {lock}", SETTLE_SECONDS
            )
            self.qubes.frontend.wait_for(
                f"! test -e /run/qubes/usb-import-sys-usb-{bus_id}.state"
                f" && ! test -e /run/qubes-usb-proxy/import-sys-usb-{bus_id}.lock",
                SETTLE_SECONDS,
            )
        except LabError as error:
            guests = (self.qubes.backend, self.qubes.frontend)
            found = [f"{guest.name}: {guest.run(self._looks()).text}" for guest in guests]
            raise Wrong("\n".join([f"not clean: {str(error).splitlines()[0]}", *found])) from error

    def _looks(self) -> str:
        """A command that shows what a guest knows of this device."""
        bus_id = self.device.bus_id
        return (
            f"ls -l /sys/bus/usb/devices/{bus_id}/driver {self._key()};"
            f" cd /run/qubes-usb-proxy && ls -l ./*{bus_id}* && grep -H . ./*{bus_id}*;"
            f" pgrep -af '{bus_id}( |$)'; dmesg | tail -n 8; true"
        )

    def _key(self) -> str:
        """The file in which the stand-in QubesDB keeps what dom0 is told."""
        bus_id = self.device.bus_id.replace(".", "_")
        return f"/run/lab-qubesdb/%qubes-usb-devices%{bus_id}%connected-to"

    def pause(self, most: float) -> None:
        """A random moment, in seconds."""
        threading.Event().wait(self.chance.uniform(0, most))

    # Faults.

    def kill(self, what: str, signal: str = "KILL") -> None:
        """Signal a process of this attachment, if it is there."""
        guest, command = self._kill_command(what, signal)
        guest.run(f"{command}; true")

    def _kill_command(self, what: str, signal: str) -> tuple[Guest, str]:
        bus_id = self.device.bus_id
        exporter = f"usb-export {bus_id}$"
        importer = f"usb-import /run/qubes/usb-import-sys-usb-{bus_id}.state"
        # Not qrexec-client-vm, which is told the importer's name as well.
        both = "(^/bin/sh /usr/lib/qubes/|[l]aunch )"
        frontend, backend = self.qubes.frontend, self.qubes.backend
        if what == "agent":
            parent = f"ps -o ppid= -p $(pgrep -o -f '/[u]{exporter[1:]}')"
            return backend, f"agent=$({parent}); [ $agent -gt 1 ] && kill -{signal} $agent"
        return {
            "exporter": (backend, f"pkill -{signal} -f '[l]aunch {exporter}'"),
            "exporter and its shell": (backend, f"pkill -{signal} -f '{both}{exporter}'"),
            "importer": (frontend, f"pkill -{signal} -f '[l]aunch {importer}'"),
            "importer and its shell": (frontend, f"pkill -{signal} -f '{both}{importer}'"),
            "client": (frontend, f"pkill -{signal} -f '[q]rexec-client-vm sys-usb .*+{bus_id} '"),
        }[what]

    def replug(self) -> None:
        """Pull the device out, and plug it in again."""
        self.device.unplug()
        self.device.plug()

    def freeze(self, guest: Guest) -> None:
        """Stop a whole qube for a few seconds."""
        with _freezing:
            guest.freeze()
            self.pause(5)
            guest.thaw()


# While it is being attached.


def _strike(attachment: Attachment, strike: Callable[[], object]) -> None:
    """Attach, and let something happen meanwhile; the result is one of the two."""
    call = attachment.start("attach")
    attachment.pause(3)
    strike()
    attachment.finish(call)


def _killing(what: str, signal: str = "KILL") -> Callable[[Attachment], None]:
    return lambda it: _strike(it, lambda: it.kill(what, signal))


def _unplugged_meanwhile(it: Attachment) -> None:
    _strike(it, it.device.unplug)
    it.device.plug()


def _detached_meanwhile(it: Attachment) -> None:
    _strike(it, lambda: it.call(it.chance.choice(["detach", "take back"])))


def _cancelled(it: Attachment) -> None:
    call = it.start("attach")
    variable = f"QREXEC_SERVICE_FULL_NAME=qubes.USBAttach+{it.device.bus_id}"
    runs = f"grep -qzxF {variable} /proc/[0-9]*/environ"
    it.qubes.frontend.wait_for(runs, SETTLE_SECONDS)
    it.pause(3)
    call.cancel()
    it.qubes.frontend.wait_for(f"! {runs}", SETTLE_SECONDS)


def _twice_at_once(it: Attachment) -> None:
    calls = [it.start("attach"), it.start("attach")]
    codes = [it.finish(call).code for call in calls]
    if codes.count(0) > 1:
        raise Wrong("two attaches of one device succeeded")


STRIKES: dict[str, Callable[[Attachment], None]] = {
    "attach, exporter killed": _killing("exporter"),
    "attach, exporter told to end": _killing("exporter", "TERM"),
    "attach, importer killed": _killing("importer"),
    "attach, importer told to end": _killing("importer", "TERM"),
    "attach, client killed": _killing("client"),
    "attach, agent killed": _killing("agent"),
    "attach, unplugged": _unplugged_meanwhile,
    "attach, detached": _detached_meanwhile,
    "attach, call given up": _cancelled,
    "attach twice at once": _twice_at_once,
}


# How it ends.


def _detach_twice(it: Attachment) -> None:
    service = it.chance.choice(["detach", "take back"])
    it.must(service)
    done = it.call(service)
    if b" is not attached to " not in done.stderr:
        raise Wrong(f"second {service}: code {done.code}")


def _from_both_sides(it: Attachment) -> None:
    codes = [it.finish(call).code for call in (it.start("detach"), it.start("take back"))]
    if 0 not in codes:
        raise Wrong("neither of two detaches succeeded")


def _attach_while_detaching(it: Attachment) -> None:
    calls = [it.start("detach")]
    it.pause(1)
    calls.append(it.start("attach"))
    for call in calls:
        it.finish(call)
    it.call("take back")


def _second_attach(it: Attachment) -> None:
    done = it.call("attach")
    if not any(text in done.stderr.decode() for text in TAKEN):
        raise Wrong(f"a second attach: code {done.code}, {done.stderr!r}")
    it.device.traffic(it.chance)
    it.must("detach")


def _reset_in_frontend(it: Attachment) -> None:
    path = "$(udevadm info -q path -n " + it.device.node + ")"
    find = f"p=/sys{path}; until test -e $p/busnum; do p=${{p%/*}}; done; echo ${{p##*/}}"
    it.qubes.frontend.run(f"/usr/lib/qubes/usb-reset $({find})", check=False)
    it.call("take back")


def _reset_in_backend(it: Attachment) -> None:
    it.qubes.backend.run(f"/usr/lib/qubes/usb-reset {it.device.bus_id}", check=False)
    it.call("detach")


def _frozen(it: Attachment) -> None:
    it.freeze(it.chance.choice([it.qubes.frontend, it.qubes.backend]))
    it.must("detach")


def _without_its_shell(what: str) -> Callable[[Attachment], None]:
    def end(it: Attachment) -> None:
        it.kill(what)
        # Nobody is left to clean up but the next command.
        it.attach()
        it.must("take back")

    return end


def _ended(what: str, signal: str = "KILL") -> Callable[[Attachment], None]:
    return lambda it: it.kill(what, signal)


ENDS: dict[str, Callable[[Attachment], None]] = {
    "detached from work": lambda it: it.must("detach"),
    "taken back by sys-usb": lambda it: it.must("take back"),
    "detached twice": _detach_twice,
    "detached from both sides": _from_both_sides,
    "attached while detaching": _attach_while_detaching,
    "a second attach": _second_attach,
    "unplugged": Attachment.replug,
    "exporter killed": _ended("exporter"),
    "exporter told to end": _ended("exporter", "TERM"),
    "importer killed": _ended("importer"),
    "importer told to end": _ended("importer", "TERM"),
    "client killed": _ended("client"),
    "agent killed": _ended("agent"),
    "exporter and its shell killed": _without_its_shell("exporter and its shell"),
    "importer and its shell killed": _without_its_shell("importer and its shell"),
    "a qube frozen": _frozen,
    "reset in sys-usb": _reset_in_backend,
    "reset in work": _reset_in_frontend,
}
ORDERLY = ("detached from work", "taken back by sys-usb")


def end(it: Attachment) -> str:
    """How this one ends: in every second case without a fault."""
    names = [n for n in ENDS if n != "reset in work" or isinstance(it.device, Disk)]
    return it.chance.choice(ORDERLY if it.chance.random() < 0.4 else names)
