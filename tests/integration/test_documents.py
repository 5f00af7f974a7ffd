# SPDX-License-Identifier: GPL-2.0-or-later
"""What the documents for users tell them to type, typed: it prints what they say it prints."""

from __future__ import annotations

import asyncio
import re
import shlex
import time
from collections.abc import Iterator

import pytest

from tests.docs.documents import ALL, LAB_DOCUMENTS, NOT_RUN, TOP, Step
from tests.dom0 import client, imitation
from tests.dom0.conftest import entry_points  # noqa: F401 (by which qubesd finds the extension)
from tests.dom0.world import Qube
from tests.lab.guests import Guest
from tests.lab.lab import Lab
from tests.lab.qubes import PACKAGES
from tests.lab.router import Completed

from .dom0 import SECONDS, LabWorld, PolicyLab
from .test_dom0 import until

MACHINES = ("dom0", "work", "sys-usb")
DEVICES = {
    "stick": ("storage", "2-1"),
    "disk": ("encrypted", "2-1"),
    "headset": ("audio", "1-2"),
    "key": ("ccid", "1-3"),
    "board": ("serial", "1-4"),
    "bootloader": ("ccid", "1-4"),
    "modem": ("serial", "1-5"),
    "phone": ("phone", "4-1"),
}
"""What can be plugged in, and where it appears."""
READS_ON = """udevadm settle
for host in /sys/bus/usb/drivers/usb-storage/*/host*; do
    test ! -e "$host" || until ls "$host"/target*/*/block; do sleep 0.1; done
done
udevadm settle"""
"""Who reads on needs longer than udev, which loads drivers, and than a disk, which is scanned."""

PASSPHRASE = b"words"
ENCRYPT = """set -e
python3 - <<'END'
with open("/dev/sda", "r+b") as disk:
    disk.seek(446)
    disk.write(bytes.fromhex("0000000083000000 00080000 00f00000") + bytes(48) + b"\\x55\\xaa")
END
until blockdev --rereadpt /dev/sda; do sleep 0.1; done
udevadm settle
words() { printf words | cryptsetup "$@"; }
words luksFormat --batch-mode --pbkdf pbkdf2 --pbkdf-force-iterations 1000 /dev/sda1
words open /dev/sda1 new
mkfs.vfat /dev/mapper/new
udevadm settle
cryptsetup close new
"""
"""One partition, from sector 2048 on, with an encrypted file system."""

PROPERTY = re.compile(r'ENV\{([A-Z_]+)\}="([^"]*)"')
"""What a udev rule sets; it compares with `==`."""

RULE = re.compile(r"(\S+) +(?:\+?(\S+)) +(\S+) +(\S+) +(allow|ask) +user=(\S+).*")


class RuledLab(PolicyLab):
    """The lab with both: the rules of qubesd's extension, and standing ones."""

    def _user(self, source: str, target: str, full_name: str) -> str | None:
        return super()._user(source, target, full_name) or Lab._user(
            self, source, target, full_name
        )


class Reader:
    """Somebody who types what a document says."""

    def __init__(self, world: LabWorld) -> None:
        self.world, self.lab = world, world.lab
        self.guests = {"sys-usb": self.lab.backend, "work": self.lab.frontend}
        self.plugged: set[str] = set()
        world.ext.looks.suspending = self.lab.folder / "suspending"

    async def do(self, step: Step) -> str:
        """Do one step; gives what is printed."""
        if step.kind in ("plug", "unplug"):
            return await (self.plug if step.kind == "plug" else self.unplug)(step.text)
        if step.kind == "suspend":
            return await self.suspend()
        if step.kind == "policy":
            return self.write_rules(step)
        if step.kind == "udev":
            return await asyncio.to_thread(self.write_udev_rule, self.guests["sys-usb"], step.text)
        if step.machine == "dom0":
            return await self.in_dom0(step.text)
        user = "root" if step.is_root else "user"
        guest = self.guests[step.machine]
        stdin = PASSPHRASE if step.text.startswith("cryptsetup open") else b""
        return shown(await asyncio.to_thread(guest.run, step.text, user, stdin, check=False))

    async def plug(self, name: str) -> str:
        """Plug in a device, unless it is there, and wait until dom0 and its driver have seen it."""
        if name in self.plugged:
            return ""
        self.plugged.add(name)
        backend = self.guests["sys-usb"]
        driver, bus_id = DEVICES[name]
        told = f"added sys-usb sys-usb:{bus_id}"
        before = self.world.told.count(told)
        await asyncio.to_thread(getattr(self, f"plug_{driver}"), backend, name)
        await until(lambda: self.world.told.count(told) > before, f"the {name} was not seen")
        # The kernel has no driver for a card reader or for adb: programs talk to them.
        bound = f"{bus_id}:1.0{'/driver' * (driver not in ('ccid', 'phone'))}"
        blocked = f"grep -q 0 {bus_id}/authorized"
        # One that is assigned may be attached by now.
        is_held = f"test -e {bus_id}/usbip_status"
        ready = f"cd /sys/bus/usb/devices; test -e {bound} || {is_held} || {blocked}"
        await asyncio.to_thread(backend.wait_for, ready)
        return ""

    async def unplug(self, name: str) -> str:
        """Pull out a device, and wait until dom0 has seen it."""
        told = f"removed sys-usb sys-usb:{DEVICES[name][1]}"
        before = self.world.told.count(told)
        await asyncio.to_thread(self.guests["sys-usb"].unplug, name)
        self.plugged.remove(name)
        await until(lambda: self.world.told.count(told) > before, f"the {name} is seen still")
        return ""

    @staticmethod
    def plug_storage(backend: Guest, name: str) -> None:
        backend.plug_storage(name, 1 << 20, port=port_of(name))

    @staticmethod
    def plug_encrypted(backend: Guest, name: str) -> None:
        backend.plug_storage(name, 32 << 20, port=port_of(name))
        backend.wait_for("test -b /dev/sda")
        backend.run(ENCRYPT)

    def plug_audio(self, backend: Guest, name: str) -> None:
        backend.plug_audio(name, self.lab.folder / f"{name}.wav", port=port_of(name))

    @staticmethod
    def plug_ccid(backend: Guest, name: str) -> None:
        backend.plug("usb-ccid", name, port=port_of(name))

    @staticmethod
    def plug_serial(backend: Guest, name: str) -> None:
        backend.plug_serial(name, port=port_of(name))

    @staticmethod
    def plug_phone(backend: Guest, _name: str) -> None:
        backend.push(TOP / "tests/phones/gadget.py", "/run/gadget.py")
        backend.run("modprobe dummy_hcd")
        backend.start_command("exec python3 /run/gadget.py")

    async def suspend(self) -> str:
        """Suspend and resume the computer, as qubesd does (qubes/api/internal.py)."""
        scripts = "for script in /etc/qubes/suspend-{}.d/*.sh; do $script || exit; done"
        sides, looks = (self.world.work, self.world.usb), self.world.ext.looks
        looks.suspending.touch()
        for vm in sides:
            await asyncio.to_thread(self.guests[vm.name].run, scripts.format("pre"))
        held = [each for each in DEVICES.values() if self.world.holder(each[1])]
        assert not held, held
        looks.suspending.unlink()
        for vm in sides:
            vm.fire_event("domain-resumed")
        for vm in sides:
            await asyncio.to_thread(self.guests[vm.name].run, scripts.format("post"))
        modem = DEVICES["modem"][1]
        await until(lambda: self.world.holder(modem) == "work", "the modem was not attached again")
        # sys-usb tells of it before work has asked it what it is.
        driven = "ls -d /sys/devices/platform/vhci_hcd.*/usb*/*-*/*:1.0/driver"
        await asyncio.to_thread(self.guests["work"].wait_for, driven, then=READS_ON)
        return ""

    def write_rules(self, step: Step) -> str:
        """Make the rules of a block count. The lab has nobody to ask: that rule is no rule here."""
        for line in step.text.splitlines():
            rule = RULE.fullmatch(line)
            assert rule, f"{step.place}: {line}"
            service, argument, source, target, action, user = rule.groups()
            if action == "allow":
                ends = (self.guests[source], self.guests[target])
                self.lab.allow(service, argument, *ends, user)
        return ""

    @staticmethod
    def write_udev_rule(guest: Guest, text: str) -> str:
        """What udev makes of a rule, with the stick in the place of the device that it names."""
        path = "/etc/udev/rules.d/99-document.rules"
        guest.write(path, text.replace('"1234"', '"46f4"').replace('"5678"', '"0001"'))
        tried = "udevadm test --action=change /sys/bus/usb/devices/2-1 2>/dev/null"
        found = guest.run(f"{tried}; rm {path}").text.splitlines()
        wanted = [f"{name}={value}" for name, value in PROPERTY.findall(text)]
        assert wanted and set(wanted) <= set(found)
        return ""

    async def in_dom0(self, text: str) -> str:
        """The commands of dom0 that the documents use."""
        if " && " in text:
            return "".join([await self.in_dom0(each) for each in text.split(" && ")])
        request, _, called = text.rpartition(" | ")
        match shlex.split(called):
            case ["qvm-usb", *arguments]:
                return await self.qvm_usb(arguments)
            case ["qvm-service", "--enable", name, service]:
                # It counts when the qube starts (qubes-core-agent-linux, init/functions).
                enable = f"mkdir -p /run/qubes-service; touch /run/qubes-service/{service}"
                await asyncio.to_thread(self.guests[name].run, enable)
                return ""
            case ["qvm-run", "-p", "-u", "root", "--service", name, service]:
                line = f"{request.removeprefix('echo ')}\n".encode()
                return shown(
                    await asyncio.to_thread(self.lab.call, self.guests[name], service, line)
                )
        return await self.qube(shlex.split(text))

    async def qube(self, words: list[str]) -> str:
        """What dom0 does to a qube that the documents make."""
        match words:
            case ["qvm-create", "--disp", "--template", _, "--prop", "auto_cleanup=True", name]:
                Qube(self.world, name, "DispVM").state = "Halted"
            case ["qvm-start", name]:
                guest = await asyncio.to_thread(self.lab.start_frontend, name)
                self.guests[name] = self.world.guests[name] = guest
                self.world.app.domains[name].state = "Running"
            case ["qvm-shutdown", "--wait", name]:
                await asyncio.to_thread(self.guests.pop(name).kill)
                await self.world.halt(self.world.app.domains[name])
                del self.world.app.domains[name]
            case ["qvm-run", "--pass-io", name, command]:
                guest = self.guests[name]
                return shown(await asyncio.to_thread(guest.run, command, user="user", check=False))
            case _:
                raise AssertionError(f"the lab's dom0 has no {words}")
        return ""

    async def qvm_usb(self, arguments: list[str]) -> str:
        """What qvm-usb prints on a terminal, and what has settled since."""
        if arguments[0] == "attach":
            # A phone that was detached may be on its way back into the list.
            await until(lambda: arguments[-1] in imitation.table(self.world), f"no {arguments[-1]}")
        printed = await (client.run if client.SOURCES else imitation.run)(self.world, arguments)
        if arguments[0] == "attach":
            await asyncio.to_thread(self.guests[arguments[1]].run, READS_ON)
        return printed


def port_of(name: str) -> str:
    """The port of the xHCI controller that a device is plugged into."""
    return DEVICES[name][1].partition("-")[2]


def shown(done: Completed) -> str:
    """What a terminal shows of a command."""
    return done.stdout.decode() + done.stderr.decode()


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    with RuledLab(PACKAGES, progress=print) as lab:
        world = LabWorld(tmp_path_factory.mktemp("policy.d"), lab, lab.frontend)
        lab.rules = world.rules
        yield Reader(world)


async def type_all(reader: Reader) -> list[str]:
    """Do all steps; gives what was printed otherwise than it is written."""
    reader.world.watch()
    differences = []
    for step in (step for name in LAB_DOCUMENTS for step in ALL[TOP / name]):
        if step.kind == "text" or step.text in NOT_RUN or step.machine not in MACHINES:
            continue
        difference = step.difference(await reader.do(step))
        deadline = time.monotonic() + SECONDS
        while difference and step.text == "qvm-usb list" and time.monotonic() < deadline:
            # The other side tells dom0 when it is done, too.
            await asyncio.sleep(0.2)
            difference = step.difference(await reader.do(step))
        if difference:
            differences.append(difference)
    return differences


def test_what_users_type(reader: Reader) -> None:
    """One document after the other, each with what the one before has left."""
    differences = asyncio.run(type_all(reader))
    assert not differences, "\n".join(differences)
