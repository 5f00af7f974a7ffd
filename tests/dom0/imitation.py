# SPDX-License-Identifier: GPL-2.0-or-later
"""An imitation of `qvm-usb` on a terminal, for where the real one is not given (`client`)."""

from __future__ import annotations

from typing import Any

from qubes.device_protocol import DeviceAssignment, UnknownDevice, VirtualDevice

from tests.dom0.world import World
from usb_proxy.dom0.qubesd import QubesException, local_qubes


async def run(world: World, arguments: list[str]) -> str:
    """What it prints of the commands that the documents have, and of their failures."""
    if arguments == ["list"]:
        return table(world)
    command, *options, name, place = arguments
    assert options in ([], ["--port"]) and command in COMMANDS, f"no imitation of {arguments}"
    backend, _, port = place.partition(":")
    vm = world.app.domains[name]
    device = world.app.domains[backend].devices["usb"][port]
    unknown = f"backend vm {backend} doesn't expose usb device '{port}'\n"
    if isinstance(device, UnknownDevice) and command == "attach":
        return f"qvm-usb: error: {unknown}"
    if isinstance(device, UnknownDevice) and not options:
        return "Error: " + (f"{device} not found.\n" if command == "detach" else unknown)
    meant = VirtualDevice(device.port, "*") if options else device
    mode = "auto-attach" if command == "assign" else "manual"
    assignment = DeviceAssignment(meant, vm, mode=mode)
    try:
        devices = vm.devices["usb"]
        await getattr(devices, command)(assignment.port if command == "detach" else assignment)
    except QubesException as error:
        # The client formats what it was told with `%`.
        return f"Error: {str(error) % ()}\n"
    is_attached = device.port in [one.port for one in devices.get_attached_devices()]
    done = "" if isinstance(device, UnknownDevice) else COMMANDS[command].get(is_attached)
    return f"{done} {name} {place}\n" if done else ""


COMMANDS: dict[str, dict[bool, str]] = {
    "attach": {},
    "detach": {},
    "assign": {
        False: "Assigned. To attach you can now restart domain or run: \n\tqvm-usb attach",
    },
    "unassign": {
        True: "Unassigned. To detach you can now restart domain or run: \n \tqvm-usb detach",
    },
}
"""What each says when it has succeeded, of a device that is attached to that qube or is not."""


def table(world: World) -> str:
    """One line for each device that dom0 sees."""
    devices: list[Any] = [device for vm in local_qubes(world.app) for device in vm.devices["usb"]]
    rows = []
    for device in devices:
        place = f"{device.backend_domain}:{device.port_id}"
        holder = device.attachment
        rows.append((place, device.description, f"{holder} (attached)" if holder else ""))
    rows = [("BACKEND:DEVID", "DESCRIPTION", "USED BY"), *sorted(rows)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join(map(str.ljust, row, widths)) for row in rows]
    return "".join(f"{line.rstrip()}\n" for line in lines)
