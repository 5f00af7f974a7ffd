# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab with faults: injecting them, and what has to hold after each."""

import contextlib
import hashlib
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.guests import Guest
from tests.lab.lab import Lab
from tests.lab.qubes import Qubes
from tests.lab.router import Call, Completed

from .outcomes import Outcomes
from .steps import OPTIONAL
from .table import After, Case

GUEST = Path(__file__).parent / "guest"
FOLDER = "/run/lab-faults"
LAUNCH = "/usr/lib/qubes/usb-proxy/launch"
STICK = "stick"
DISK = f"/dev/disk/by-id/usb-QEMU_QEMU_HARDDISK_{STICK}-0:0"
IMAGE_SIZE = 256 << 10
DATABASE = "/run/lab-qubesdb"
SECONDS = 60


class Faults(Qubes):
    """Both guests, a stick with known data, faults at named steps, and the promise.

    Attached as by a dom0 that does not tell what a device is, but where a case says what it told.
    """

    announces = False

    def __init__(self, lab: Lab, image: Path) -> None:
        super().__init__(lab)
        self.image = image
        self.hash = hashlib.sha256(image.read_bytes()).hexdigest()
        self.commands = 0
        self.device = ""
        self.is_checked = False
        for guest in (self.backend, self.frontend):
            self.install(guest)

    def install(self, guest: Guest) -> None:
        """Put the tracer into a guest, once; it does nothing until it is told."""
        guest.push(GUEST / "launch", f"{FOLDER}/launch")
        guest.push(GUEST / "tracer.py", f"{FOLDER}/tracer.py")
        guest.run(f"mountpoint -q {LAUNCH} || mount --bind {FOLDER}/launch {LAUNCH}")

    def restart(self, guest: Guest) -> None:
        """Kill a guest's machine and boot it afresh, with the tracer."""
        guest.restart()
        self.install(guest)

    def guest(self, name: str) -> Guest:
        """The guest of this name."""
        return self.backend if name == self.backend.name else self.frontend

    # Faults

    def arm(self, guest: Guest, program: str, step: str, action: str) -> None:
        """At this step of the next such program in `guest` do `action` (see the tracer).

        A program looks for its fault when it starts, so arm one for the end of an export before
        the attach.
        """
        fault = shlex.quote(f"{program}\t{step}\t{action}\n")
        guest.run(f"cd {FOLDER}; rm -f fired; printf {fault} > fault.new; mv fault.new fault")

    def await_fired(self, guest: Guest) -> tuple[int, str]:
        """Wait until a program has reached the step: its pid, and `PROGRAM: STEP`."""
        loop = f"until cat {FOLDER}/fired 2>&-; do sleep 0.1; done"
        pid, _, where = guest.run(loop, timeout=SECONDS).text.partition(" ")
        return int(pid), where

    def await_standing(self, guest: Guest, action: str) -> Callable[[], None]:
        """Wait until a program stands still after HOLD or STOP; gives what lets it go on.

        That does nothing to a process that was killed meanwhile.
        """
        pid, _ = self.await_fired(guest)
        if action == "STOP":
            guest.wait_for(f"grep -q '^State:.T' /proc/{pid}/status")
        signal = {"HOLD": "USR2", "STOP": "CONT"}[action]

        def go_on() -> None:
            guest.run(f"kill -{signal} {pid} 2>&-; true")

        return go_on

    def disarm(self) -> None:
        """Forget a fault that has not happened."""
        self.run_both(f"rm -f {FOLDER}/fault {FOLDER}/record")

    def run_both(self, command: str) -> list[Completed]:
        """Run a shell command in both guests at once: in sys-usb, in work."""
        calls = [guest.start_command(command) for guest in (self.backend, self.frontend)]
        return [call.wait(SECONDS) for call in calls]

    def record(self, act: Callable[[], object]) -> dict[tuple[str, str], tuple[str, ...]]:
        """The steps of every program that runs while `act` does: by guest and program."""
        self.run_both(f"rm -rf {FOLDER}/trace; mkdir {FOLDER}/trace; touch {FOLDER}/record")
        act()
        assert self.await_clean() == []
        lists = f'for file in *; do echo "== $file"; cat "$file"; done; rm {FOLDER}/record'
        found: dict[tuple[str, str], tuple[str, ...]] = {}
        names = (self.backend.name, self.frontend.name)
        for name, done in zip(names, self.run_both(f"cd {FOLDER}/trace; {lists}"), strict=True):
            for part in done.text.split("== ")[1:]:
                file, *seen = part.splitlines()
                found[name, file.split(".")[0]] = tuple(s for s in seen if s not in OPTIONAL)
        return found

    # Calls that a fault befalls

    def start_attach(self, device: str, announced: str | None = None) -> Call:
        """qubes.USBAttach in work, under way; its rule is there until `allowed_no_more`."""
        self.lab.allow("qubes.USB", device, self.frontend, self.backend)
        return super().start_attach(device, announced)

    def start_detach(self, device: str, side: str) -> Call:
        """qubes.USBDetach in the qube of this name, under way."""
        if side == self.frontend.name:
            return self.lab.start_call(
                self.frontend, "qubes.USBDetach", f"sys-usb {device}\n".encode()
            )
        return self.lab.start_call(self.backend, "qubes.USBDetach", f"{device}\n".encode())

    def allowed_no_more(self, device: str) -> None:
        """Take the rule of `start_attach` out again."""
        self.lab.revoke("qubes.USB", device, self.frontend, self.backend)

    @contextlib.contextmanager
    def standing(
        self, case: Case, device: str, action: str = "HOLD", announced: str | None = None
    ) -> Iterator[tuple[Call, Callable[[], None]]]:
        """The case's attach or detach under way, while its program stands still at its step.

        Gives the call, and what lets the program go on. The rule for an attach ends with this.
        """
        data, guest = case.data, self.guest(case.data["guest"])
        self.arm(guest, data["program"], data["step"], action)
        if data["journey"] == "attach":
            call = self.start_attach(device, announced)
        else:
            done = self.attach(device)
            assert (done.code, done.stderr) == (0, b"")
            call = self.start_detach(device, data["journey"].removeprefix("detach in "))
        try:
            yield call, self.await_standing(guest, action)
        finally:
            self.allowed_no_more(device)

    def stick(self) -> str:
        """The bus id of the stick in sys-usb, plugged in if it is not there."""
        if not self.is_plugged():
            self.device = self.plug_storage(STICK, self.image)
        return self.device

    def is_plugged(self) -> bool:
        """Whether the stick is in a port of sys-usb."""
        try:
            return bool(self.backend.port(STICK))
        except KeyError:
            return False

    # The promise

    def check(self, case: Case, done: Completed | None) -> None:
        """All that has to hold after a case; `done` is the command that the fault befell, if any.

        What may not be left: ports, records, keys, locks, processes, sockets, a bound driver,
        complaints of the kernel; the next attach has to work, to carry data, and to end without a
        trace.
        """
        if done is not None:
            said_well(case, done)
        self.check_settled(case)
        self.attach_and_detach(self.stick())
        assert self.complaints() == []
        self.is_checked = True

    def leftovers(self) -> list[str]:
        """Also a device that has no driver."""
        here = (
            "for d in /sys/bus/usb/devices/*-*; do case $d in *:*) ;;"
            " *) test -e $d/driver || ! test -e $d || echo $d has no driver; esac; done"
        )
        call = self.backend.start_command(here)
        found = super().leftovers()
        lines = call.wait(SECONDS).text.splitlines()
        return found + [f"{self.backend.name}: {line}" for line in lines]

    def check_settled(self, case: Case, seconds: float = 40) -> None:
        """Wait for what `case.after` says."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.leftovers()
            if case.after is After.NEXT_COMMAND:
                found = [line for line in found if not line.startswith(f"{case.left_in}: ")]
            if not found:
                return
            may_be_attached = case.after is After.EITHER and self.is_plugged()
            if may_be_attached and self.is_attached(self.device):
                done = self.detach(self.device)
                assert (done.code, done.stderr) == (0, b"")
            assert time.monotonic() < deadline, "left over: " + "\n".join(found)

    def is_attached(self, device: str) -> bool:
        """Whether an attachment is whole: both processes, the key, the record, and the disk."""
        record = f"test -e /run/qubes/usb-import-sys-usb-{device}.state"
        here = f"pgrep -f '[l]aunch usb-import' && {record} && test -b {DISK}"
        if self.frontend.run(here, check=False).code:
            return False
        there = self.backend.run("pgrep -f '[l]aunch usb-export'", check=False)
        return there.code == 0 and self.connected_to(device) == b"work"

    def attach_and_detach(self, device: str) -> None:
        """The next attach: it works, carries the stick's data, and ends from either side."""
        done = self.attach(device)
        assert (done.code, done.stderr) == (0, b"")
        self.check_attached(device)
        self.commands += 1
        done = self.take_back(device) if self.commands % 2 else self.detach(device)
        assert (done.code, done.stderr) == (0, b"")
        is_back = f"test -e /sys/bus/usb/drivers/usb/{device} && ! ls {DATABASE}/*connected-to"
        if self.commands % 2:
            self.backend.run(is_back)
        assert self.await_clean() == []
        slots = "tr ' ' '\\n' < /sys/bus/usb/drivers/usbip-host/match_busid"
        self.backend.run(f"{is_back} && ! {slots} | grep -qx {device}")

    def check_attached(self, device: str) -> None:
        """dom0 is told who has the stick, and its data can be read there."""
        read = f"dd if={DISK} iflag=direct bs=64k 2>&- | sha256sum"
        done = self.frontend.run(f"until test -b {DISK}; do sleep 0.1; done; {read}")
        assert done.text.split()[0] == self.hash
        # It is told after the hand-over, beside the rest of the attach.
        assert self.connected_to(device) == b"work"

    def connected_to(self, bus_id: str) -> bytes | None:
        """What QubesDB says of a device."""
        key = f"%qubes-usb-devices%{bus_id.replace('.', '_')}%connected-to"
        done = self.backend.run(f"cat {DATABASE}/{key}", check=False)
        return done.stdout if done.code == 0 else None

    def complaints(self) -> list[str]:
        """What the kernels complained of since the last time."""
        both = self.run_both("dmesg --level=emerg,alert,crit --notime; dmesg -C")
        return [line for done in both for line in done.text.splitlines()]


def said_well(case: Case, done: Completed) -> None:
    """What the user was told: one printable sentence and a code, or nothing and success."""
    said = done.stderr.decode("ascii")
    if done.code == 0:
        assert not case.told or case.may_succeed, f"it succeeded: {case}"
        assert said == ""
    elif case.mute:
        assert done.code == -1 or done.code > 128
    else:
        assert said.endswith("\n"), f"no sentence with code {done.code}: {said!r}"
        assert said[:-1].isprintable(), said
        assert re.search(case.told, said[:-1]), said
        print(said, end="")


@pytest.fixture(scope="session")
def faulty_lab(running_lab: Qubes, tmp_path_factory: pytest.TempPathFactory) -> Faults:
    """The lab with the tracer in both guests."""
    image = tmp_path_factory.mktemp("faults") / "stick.img"
    image.write_bytes(hashlib.shake_256(b"a stick").digest(IMAGE_SIZE))
    return Faults(running_lab.lab, image)


@pytest.fixture
def faults(faulty_lab: Faults) -> Iterator[Faults]:
    """Both guests with nothing attached; the stick may be plugged in. Booted anew after a failure.

    End a case with `Faults.check`, which is what makes it one.
    """
    faulty_lab.is_checked = False
    yield faulty_lab
    if faulty_lab.is_checked:
        return
    faulty_lab.disarm()
    problems = faulty_lab.await_clean(10)
    if problems:
        for guest in (faulty_lab.backend, faulty_lab.frontend):
            faulty_lab.restart(guest)
        pytest.fail("left over: " + "\n".join(problems))


def pytest_configure(config: pytest.Config) -> None:
    """Take down outcomes, in one process."""
    outcomes = Outcomes(int(os.environ.get("HOLDS", "0")), not hasattr(config, "workerinput"))
    config.pluginmanager.register(outcomes, "outcomes")
