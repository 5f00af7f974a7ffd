# SPDX-License-Identifier: GPL-2.0-or-later
"""The real `qvm-usb`, on a terminal: CORE_ADMIN_CLIENT, a checkout of qubes-core-admin-client.

It talks to qubesd's socket, as in dom0. The real qubesd's own code answers where that is tested
with, otherwise what is here, in the Admin API's words (doc/ of core-admin).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import importlib.util
import os
import pty
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from tests.dom0.conftest import REAL

from qubes.device_protocol import DeviceAssignment, Port, VirtualDevice  # isort: skip

from tests.dom0.world import World
from usb_proxy.dom0.qubesd import QubesException

Program = Callable[[World, list[str]], Awaitable[str]]
"""What runs `qvm-usb` with arguments and gives what is printed."""

SOURCES = os.environ.get("CORE_ADMIN_CLIENT") or None
METADATA = "Name: qubesadmin\nVersion: 0\nSummary: x\nAuthor: x\nLicense: x\n"
PROGRAM = """
import os, sys
import qubesadmin.app, qubesadmin.config, qubesadmin.device_protocol
from qubesadmin.tools import qvm_device
qubesadmin.config.QUBESD_SOCKET = sys.argv.pop(1)
sys.argv[0] = "/usr/bin/qvm-usb"
if not os.path.exists("/usr/share/hwdata/usb.ids"):
    qubesadmin.device_protocol.DeviceInterface._load_classes = staticmethod(lambda bus: {})
sys.exit(qvm_device.main(app=qubesadmin.app.QubesLocal()))
"""
"""The tool of dom0, where there is no /etc/qubes-release; dom0 has the names of all classes."""


async def run(world: World, arguments: list[str]) -> str:
    """All that `qvm-usb` shows on a terminal."""
    async with serving(world) as folder:
        return await asyncio.to_thread(_shown, folder, arguments)


def _shown(folder: Path, arguments: list[str]) -> str:
    ours, its = pty.openpty()
    try:
        run = [sys.executable, "-c", PROGRAM, str(folder / "qubesd.sock"), *arguments]
        paths = os.pathsep.join([str(SOURCES), str(folder)])
        with subprocess.Popen(
            run, stdin=its, stdout=its, stderr=its, env=os.environ | {"PYTHONPATH": paths}
        ):
            os.close(its)
            return "".join(_read(ours)).replace("\r\n", "\n")
    finally:
        os.close(ours)


def _read(terminal: int) -> Iterator[str]:
    """What is written to a terminal; EIO is its end (pty(7))."""
    with contextlib.suppress(OSError):
        while part := os.read(terminal, 65536):
            yield part.decode()


@contextlib.asynccontextmanager
async def serving(world: World) -> AsyncIterator[Path]:
    """A folder with the socket of a qubesd that has the qubes of a world."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "qubesadmin-0.dist-info").mkdir()
        (folder / "qubesadmin-0.dist-info/METADATA").write_text(METADATA)
        path = str(folder / "qubesd.sock")
        if REAL:
            api: Any = importlib.import_module("qubes.api")
            admin: Any = importlib.import_module("qubes.api.admin")
            world.app.log, world.app.save = mock.Mock(), lambda: None
            protocol = functools.partial(
                api.QubesDaemonProtocol, admin.QubesAdminAPI, app=world.app
            )
            server = await asyncio.get_running_loop().create_unix_server(protocol, path)
        else:
            server = await asyncio.start_unix_server(functools.partial(_connected, world), path)
        try:
            yield folder
        finally:
            server.close()


async def _connected(
    world: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """One call, as QubesDaemonProtocol of qubes/api/__init__.py reads and answers it."""
    head, _, payload = (await reader.read()).partition(b"\0")
    call, _source, _kind, name = head.decode().split(" ")
    method, _, argument = call.partition("+")
    try:
        answer = await _answer(world, method, argument, name, payload)
    except QubesException as error:
        writer.write(f"2\0{type(error).__name__}\0\0{error}\0".encode())
    else:
        writer.write(b"0\0" + answer.encode())
    finally:  # and nothing at all where something else is raised
        writer.close()


async def _answer(world: World, method: str, argument: str, name: str, payload: bytes) -> str:
    vm = world.app.domains[name]
    if method == "admin.vm.List":
        states = [(each, each.get_power_state()) for each in world.app.domains]
        return "".join(f"{each} class={each.klass} state={state}\n" for each, state in states)
    if method == "admin.vm.property.GetAll":
        return f"devices_denied default=True type=str {getattr(vm, 'devices_denied', '')}\n"
    devices = None if vm.klass == "RemoteVM" else vm.devices["usb"]
    match method.removeprefix("admin.vm.device.usb."):
        case "Available":
            return "".join(map(_info, devices or ()))
        case "Attached":
            attached = devices.get_attached_devices() if devices else ()
            return "".join(_assignment(one, one.device.device_id) for one in attached)
        case "Assigned":
            assigned = devices.get_assigned_devices() if devices else ()
            return "".join(_assignment(one, one.device_id) for one in assigned)
        case "Attach" | "Detach" | "Assign" | "Unassign" as what:
            meant = _meant(world, argument, payload)
            await getattr(devices, what.lower())(meant.port if what == "Detach" else meant)
            return ""
    raise AssertionError(f"there is no {method} here")


def _protocol() -> Any:
    """The client's own words for devices."""
    if str(SOURCES) not in sys.path:
        sys.path.append(str(SOURCES))
    return importlib.import_module("qubesadmin.device_protocol")


def _line(device: Any, text: bytes) -> str:
    return f"{device.port_id}:{device.device_id} {text.decode()}\n"


def _info(device: Any) -> str:
    theirs = _protocol()
    known = ("vendor", "product", "manufacturer", "name", "serial", "device_id", "attachment")
    return _line(
        device,
        theirs.DeviceInfo(
            theirs.Port(device.backend_domain, device.port_id, "usb"),
            interfaces=[theirs.DeviceInterface(str(one)) for one in device.interfaces],
            **{name: getattr(device, name) for name in known},
        ).serialize(),
    )


def _assignment(found: Any, device_id: str) -> str:
    theirs = _protocol()
    port = theirs.Port(found.backend_domain, found.port_id, "usb")
    device = theirs.VirtualDevice(port, device_id)
    mode = found.mode.value
    text = theirs.DeviceAssignment(device, found.frontend_domain, found.options, mode).serialize()
    return f"{found.backend_domain}+{_line(device, text)}"


def _meant(world: World, argument: str, payload: bytes) -> Any:
    theirs = _protocol()
    device = theirs.VirtualDevice.from_qarg(argument, "usb", world.app.domains)
    read = theirs.DeviceAssignment(device)
    if payload:
        read = theirs.DeviceAssignment.deserialize(payload, device)
    place = VirtualDevice(Port(read.backend_domain, read.port_id, "usb"), read.device_id)
    return DeviceAssignment(place, options=read.options, mode=read.mode.value)
