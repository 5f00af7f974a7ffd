# SPDX-License-Identifier: GPL-2.0-or-later
"""What README.md and docs/users.md tell users to type, typed: it prints what they say it prints."""

from __future__ import annotations

import asyncio
import re
import shlex
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.docs.documents import ALL, LAB_DOCUMENTS, NOT_RUN, TOP, Step
from tests.dom0 import conftest  # noqa: F401 (which makes `qubes` importable)
from tests.lab.guests import Guest
from tests.lab.lab import Lab
from tests.lab.router import Completed
from usb_proxy.dom0.qubesd import QubesException

from .test_dom0 import PACKAGES, SECONDS, LabWorld, PolicyLab, until

MACHINES = ("dom0", "work", "sys-usb")
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

    async def do(self, step: Step) -> str:
        """Do one step; gives what is printed."""
        if step.kind == "plug":
            return await self.plug(step.text)
        if step.kind == "policy":
            return self.write_rules(step)
        if step.kind == "udev":
            return await asyncio.to_thread(self.write_udev_rule, self.guests["sys-usb"], step.text)
        if step.machine == "dom0":
            return await self.in_dom0(step.text)
        user = "root" if step.is_root else "user"
        return shown(await asyncio.to_thread(
            self.guests[step.machine].run, step.text, user=user, check=False
        ))

    async def plug(self, name: str) -> str:
        """Plug in a stick, unless it is there, and wait until dom0 and its driver have seen it."""
        backend = self.guests["sys-usb"]
        if "added sys-usb sys-usb:2-1" not in self.world.told:
            await asyncio.to_thread(backend.plug_storage, name, 1 << 20)
        await until(lambda: "added sys-usb sys-usb:2-1" in self.world.told, "it was not seen")
        ready = "test -e /sys/bus/usb/devices/2-1:1.0/driver"
        await asyncio.to_thread(backend.wait_for, ready)
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
        """A udev rule counts when the device appears or changes, and sets the property."""
        path = "/etc/udev/rules.d/99-document.rules"
        guest.write(path, text)
        guest.run("udevadm control --reload; udevadm trigger --settle /sys/bus/usb/devices/2-1")
        found = guest.run("udevadm info -q property /sys/bus/usb/devices/2-1").text
        guest.run(f"rm {path}; udevadm control --reload")
        assert "QUBES_USB_RESET=1" in found.splitlines()
        return ""

    async def in_dom0(self, text: str) -> str:
        """The commands of dom0 that the documents use."""
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
                return shown(await asyncio.to_thread(
                    self.lab.call, self.guests[name], service, line
                ))
        raise AssertionError(f"the lab's dom0 has no {text}")

    async def qvm_usb(self, arguments: list[str]) -> str:
        """What qvm-usb prints on a terminal (qubesadmin/tools/qvm_device.py)."""
        world: Any = self.world
        try:
            match arguments:
                case ["list"]:
                    return self.table()
                case ["attach", name, device]:
                    await world.attach(world.app.domains[name], device.partition(":")[2])
                case ["detach", name, device]:
                    await world.detach(world.app.domains[name], device.partition(":")[2])
                case ["assign", name, device]:
                    vm = world.app.domains[name]
                    assignment = await world.assign(vm, device.partition(":")[2])
                    await vm.devices["usb"].unassign(assignment)
                case _:
                    raise AssertionError(f"the lab has no qvm-usb {arguments}")
        except QubesException as error:
            return f"{error}\n" % ()
        return ""

    def table(self) -> str:
        """One line for each device that dom0 sees."""
        rows = [("BACKEND:DEVID", "DESCRIPTION", "USED BY")]
        for device in self.world.usb.devices["usb"]:
            holder = self.world.holder(device.port_id)
            used = f"{holder} (attached)" if holder else ""
            rows.append((f"sys-usb:{device.port_id}", device.description, used))
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        return "".join(
            f"{first:{widths[0]}}  {second:{widths[1]}}  {third}".rstrip() + "\n"
            for first, second, third in rows
        )


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
