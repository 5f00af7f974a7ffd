# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine with a few qubes: QubesDB, services with their delays and failures, and all events."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import qubes.device_protocol
import qubes.devices
import qubes.vm
from qubes.device_protocol import DeviceAssignment, Port, VirtualDevice

from usb_proxy.dom0.device import USBDevice
from usb_proxy.dom0.extension import USBProxyExtension
from usb_proxy.dom0.policy import FILE_NAME

ROOT = "/qubes-usb-devices"
DESC = b"1050:0407 Yubico YubiKey\\x204 0001"
INTERFACES = b":030101:0b0000:"
DEVICE_ID = "1050:0407:0001:u030101u0b0000"
EVENTS = ("added", "removed", "attach", "detach", "list-change")


def listener(path: Path) -> socket.socket:
    """A socket that a program listens at, until it is closed; its file stays."""
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()
    return listening


class QubesDB(dict[str, bytes]):
    """QubesDB's Python interface (python/qubesdb.c of qubes-core-qubesdb)."""

    def read(self, path: str) -> bytes | None:
        return self.get(path)

    def list(self, prefix: str) -> list[str]:
        return [path for path in self if path.startswith(prefix)]


class Domains(dict[str, Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(list(self.values()))


class Qube(qubes.vm.LocalVM):
    name: Any = ""
    klass: Any = "AppVM"
    qid: Any = 0
    uuid = None
    icon: Any = "red"
    virt_mode = "pvh"
    devices_denied: str

    def __init__(self, world: World, name: str, klass: str = "AppVM") -> None:
        super(qubes.vm.BaseVM, self).__init__(*([None] if hasattr(self, "property_list") else []))
        self.world, self.name, self.klass = world, name, klass
        self.app: Any = world.app
        self.qid = len(world.app.domains)
        self.events_enabled = True
        self.state = "Running"
        self.log = mock.Mock()
        self.features = mock.Mock(check_with_template=lambda feature, default: default)
        self.untrusted_qdb: Any = QubesDB()
        self.devices: Any = qubes.devices.DeviceManager(self)
        self._qdb_watch_paths: set[str] = set()
        self._qdb_connection_watch = None
        world.app.domains[name] = self
        for event in EVENTS:
            self.add_handler(f"device-{event}:usb", world.note)

    def __str__(self) -> str:
        return str(self.name)

    def is_running(self) -> bool:
        return self.state != "Halted"

    def is_halted(self) -> bool:
        return self.state == "Halted"

    def get_power_state(self) -> str:
        return self.state

    async def run_service_for_stdio(self, *args: str, **kwargs: Any) -> tuple[bytes, bytes]:
        (service,) = args
        request, *rest = kwargs.pop("input").decode().splitlines()
        stubdom = kwargs.pop("stubdom", False)
        assert kwargs == {"user": "root", "stdout": subprocess.DEVNULL}
        self.world.second_lines.append("\n".join(rest))
        await self.world.serve(self, service, request.split(), stubdom)
        return b"", self.world.warning


class World:
    def __init__(self, folder: Path) -> None:
        vmm = SimpleNamespace(offline_mode=False)
        self.app = SimpleNamespace(domains=Domains(), vmm=vmm)
        self.rules = folder / FILE_NAME
        self.told: list[str] = []
        self.calls: list[str] = []
        self.second_lines: list[str] = []
        self.warning = b""
        self.failures: list[tuple[int, bytes]] = []
        self.seconds = 1.0
        self.lag = 0.0
        self.before: Callable[[], object] = lambda: None
        self.dom0 = Qube(self, "dom0", "AdminVM")
        self.usb = Qube(self, "sys-usb")
        self.work = Qube(self, "work")
        self.home = Qube(self, "home")
        Qube(self, "far", "RemoteVM").devices = None
        USBProxyExtension.policy_folder = folder
        self.ext = USBProxyExtension()
        self.asked: list[list[str]] = []
        self.answer = ""
        self.ext.assignments.confirm = self.confirm
        self.load()

    def allowed(self) -> str:
        """The rules that stand; the file may not have been made yet."""
        return self.rules.read_text() if self.rules.exists() else ""

    def load(self) -> None:
        """What qubesd does when it starts."""
        for vm in self.app.domains:
            if vm.klass != "RemoteVM":
                vm.fire_event("domain-load")

    def note(self, vm: Any, event: str, **arguments: Any) -> None:
        name = event.removeprefix("device-").removesuffix(":usb")
        port = arguments.get("port") or getattr(arguments.get("device"), "port", None)
        self.told.append(f"{name} {vm.name}" + (f" {port}" if port else ""))

    async def confirm(self, _device: Any, frontends: Any) -> str:
        self.asked.append(sorted(vm.name for vm in frontends))
        await asyncio.sleep(5)
        return self.answer

    def change(self, vm: Qube | None = None) -> None:
        vm = vm or self.usb
        vm.fire_event(f"domain-qdb-change:{ROOT}", path=ROOT)

    def plug(self, port: str = "2-1", desc: bytes = DESC, vm: Qube | None = None) -> None:
        key = f"{ROOT}/{port.replace('.', '_')}"
        database = (vm or self.usb).untrusted_qdb
        database.update({f"{key}/desc": desc, f"{key}/interfaces": INTERFACES})
        self.change(vm)

    def unplug(self, port: str = "2-1") -> None:
        for path in self.usb.untrusted_qdb.list(f"{ROOT}/{port.replace('.', '_')}/"):
            del self.usb.untrusted_qdb[path]
        self.change()

    def connect(self, port: str, name: str | None) -> None:
        path = f"{ROOT}/{port.replace('.', '_')}/connected-to"
        if name is None:
            self.usb.untrusted_qdb.pop(path, None)
        else:
            self.usb.untrusted_qdb[path] = name.encode()
        self.change()

    async def serve(self, vm: Qube, service: str, words: list[str], stubdom: bool) -> None:
        self.calls.append(f"{vm.name}{'-dm' * stubdom} {service} {' '.join(words)}")
        self.before()
        port = words[-1]
        rule = f"qubes.USB +{port} {vm.name}{'-dm' * stubdom} {words[0]} allow user=root"
        await asyncio.sleep(self.seconds)
        if service == "qubes.USBAttach":
            assert rule in self.rules.read_text().splitlines()
        if self.failures:
            code, said = self.failures.pop(0)
            raise subprocess.CalledProcessError(code, service, b"", said)
        name = vm.name if service == "qubes.USBAttach" else None
        if self.lag:
            asyncio.get_running_loop().call_later(self.lag, self.connect, port, name)
        else:
            self.connect(port, name)

    def device(self, port: str = "2-1") -> Any:
        return self.usb.devices["usb"][port]

    async def attach(self, vm: Qube, port: str = "2-1", **options: str) -> None:
        await vm.devices["usb"].attach(DeviceAssignment(self.device(port), vm, options))

    async def detach(self, vm: Qube, port: str = "2-1") -> None:
        await vm.devices["usb"].detach(Port(self.usb, port, "usb"))

    async def assign(
        self, vm: Qube, port: str = "2-1", device_id: str = "*", mode: str = "auto-attach"
    ) -> DeviceAssignment:
        device = VirtualDevice(Port(self.usb, port, "usb"), device_id)
        assignment = DeviceAssignment(device, vm, mode=mode)
        await vm.devices["usb"].assign(assignment)
        return assignment

    async def halt(self, vm: Qube, state: str = "Halted") -> None:
        vm.state = state
        vm.untrusted_qdb.clear()
        await vm.fire_event_async("domain-shutdown")

    def news(self) -> Counter[str]:
        """What was told since this was asked last."""
        told, self.told = Counter(self.told), []
        return told

    def holder(self, port: str = "2-1") -> str | None:
        vm: Any = USBDevice.at(self.usb, port).attachment
        name: str | None = vm and vm.name
        return name
