# SPDX-License-Identifier: GPL-2.0-or-later
"""What the extension relies on, asked of whichever `qubes` comes first in the path, as JSON."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import tempfile
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = sys.argv[1:]

import tests.dom0.conftest  # noqa: F401 (chooses the path, too)

import qubes.exc  # isort: skip
import qubes.ext
from qubes.device_protocol import (
    DeviceAssignment,
    DeviceInfo,
    DeviceInterface,
    Port,
    UnknownDevice,
    VirtualDevice,
)

from tests.dom0.world import EVENTS, World


def kind(function: Any) -> str:
    try:
        function()
    except (Exception, AssertionError) as error:
        return type(error).__name__
    return "fine"


def waited(coroutine: Awaitable[Any]) -> str:
    return kind(lambda: asyncio.run(coroutine))  # type: ignore[arg-type]


def event_facts(world: World) -> dict[str, Any]:
    facts: dict[str, Any] = {}

    class Probe(qubes.ext.Extension):
        made = 0

        def __init__(self) -> None:
            super().__init__()
            self.made += 1

        @qubes.ext.handler("probe")
        def on_probe(self, vm: Any, event: str, **arguments: Any) -> Iterator[Any]:
            yield from (vm.name, event, sorted(arguments))

        @qubes.ext.handler("slow")
        async def on_slow(self, vm: Any, event: str) -> list[str]:
            return [event]

        @qubes.ext.handler("nothing")
        def on_nothing(self, vm: Any, event: str) -> None:
            pass

    class Child(Probe):
        pass

    # Extensions and events.
    facts["one instance"] = [Probe() is Probe(), Probe().made]
    facts["handlers"] = [
        world.work.fire_event("probe", a=1),
        world.work.fire_event("nothing"),
        world.dom0.fire_event("probe"),
    ]
    facts["of a parent"] = [Child() is Child(), len(world.work.fire_event("probe"))]
    facts["async"] = asyncio.run(world.work.fire_event_async("slow"))
    order: list[str] = []
    world.work.add_handler("probe:order", lambda *_: order.append("own"))
    type(world.work).__handlers__["probe:order"].add(lambda *_: order.append("class"))
    for pre in (False, True):
        world.work.fire_event("probe:order", pre_event=pre)
    facts["order"] = order
    world.work.events_enabled = False
    facts["disabled"] = world.work.fire_event("probe")
    world.work.events_enabled = True
    facts["exceptions"] = {
        name: sorted(one.__name__ for one in getattr(qubes.exc, name).__mro__ if one.__name__ in (
            "QubesException", "ValueError", "KeyError", "AssertionError"))
        for name in ("DeviceAlreadyAttached", "DeviceNotAssigned", "QubesVMNotRunningError",
                     "QubesValueError", "UnrecognizedDevice", "ProtocolError")
    }  # fmt: skip

    return facts


def devices_facts(world: World) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    ports = [Port(vm, port, "usb") for vm in (world.usb, world.work) for port in ("2-1", "*")]
    ids = ["*", "a:b::u030101", "0000:0000::?******"]
    virtual = [VirtualDevice(port, one) for port, one in itertools.product(ports, ids)]
    infos = [DeviceInfo(port) for port in ports]
    found = [DeviceAssignment(device) for device in (*virtual, *infos)]
    things: list[Any] = [*virtual, *infos, *found]
    facts["text"] = [str(thing) for thing in (*ports, *virtual, *infos)]
    facts["equal"] = [a == b for a, b in itertools.product(things, things)]
    facts["same hash"] = [hash(a) == hash(b) for a, b in itertools.product(things, things)]
    facts["matches"] = [a.matches(b) for a, b in itertools.product(found, (*virtual, *infos))]
    facts["ids"] = [(thing.port_id, thing.device_id, thing.devclass) for thing in things]
    facts["info"] = [
        [getattr(infos[0], name) for name in ("vendor", "product", "name", "serial")],
        list(map(repr, infos[0].interfaces)),
        infos[0].attachment,
    ]
    facts["interface"] = [
        repr(DeviceInterface("030101", "usb")),
        DeviceInterface("u030101") == DeviceInterface("030101", "usb"),
    ]
    facts["modes"] = [
        (one.mode.value, one.attach_automatically, one.required)
        for mode in ("manual", "auto-attach", "ask-to-attach", "required")
        for one in [DeviceAssignment(virtual[0], world.work, {}, mode)]
    ]

    return facts


def collection_facts(world: World) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    world.seconds = 0
    manual = DeviceAssignment(VirtualDevice(Port(world.usb, "2-1", "usb"), "*"), world.work)
    devices = world.work.devices["usb"]
    facts["nothing there"] = [
        type(world.usb.devices["usb"]["2-1"]) is UnknownDevice,
        list(world.usb.devices["usb"]),
        waited(devices.attach(manual)),
        waited(devices.detach(manual.port)),
    ]
    key = "/qubes-usb-devices/2-1/"
    world.usb.untrusted_qdb[key + "desc"] = b"1050:0407"
    facts["there"] = [str(manual.device), list(map(str, world.usb.devices["usb"]))]
    wrong = DeviceAssignment(VirtualDevice(manual.port, "dead:beef::u000000"), world.work)
    facts["wrong"] = waited(devices.attach(wrong))
    seen: list[str] = []
    for event in ("pre-attach", "pre-detach", *EVENTS):
        world.work.add_handler(
            f"device-{event}:usb", lambda _vm, event, **kw: seen.append(f"{event} {sorted(kw)}")
        )
    world.work.state = "Halted"
    facts["halted"] = waited(devices.attach(manual))
    world.work.state = "Running"
    facts["attach"] = waited(devices.attach(manual))
    facts["attached"] = [(str(one), one.mode.value) for one in devices.get_attached_devices()]
    facts["again"] = waited(devices.attach(manual))
    standing = DeviceAssignment(manual.device, world.work, {}, "auto-attach")
    facts["assign"] = [waited(devices.assign(standing)) for _ in range(2)]
    facts["assigned"] = [(str(one), one.mode.value) for one in devices.get_attached_devices()]
    facts["detach"] = [waited(devices.detach(manual.port)), list(devices.get_attached_devices())]
    facts["events"] = seen
    (assignment,) = devices.get_assigned_devices()
    facts["unassign"] = [waited(devices.unassign(assignment)) for _ in range(2)]
    facts["unassigned"] = list(devices.get_assigned_devices())
    facts["watched"] = sorted(world.usb._qdb_watch_paths)
    return facts


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        machine = World(Path(folder))
        print(json.dumps(event_facts(machine) | devices_facts(machine) | collection_facts(machine)))
