# SPDX-License-Identifier: GPL-2.0-or-later
"""status: the devices here, where they are, and what came from other qubes."""

from __future__ import annotations

import time

from usb_proxy.tool import overview
from usb_proxy.tool.screen import Screen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    from usb_proxy.host import Host
    from usb_proxy.tool.overview import Device, Overview, UsedPort

NOTHING = "-"


def main(options: Collection[str], _names: object, host: Host) -> int:
    """Show the state once, or again after each change; the exit code."""
    screen = Screen(host)

    def show(before: object) -> Overview:
        state = overview.overview(host)
        if state == before:
            return state
        if "--json" in options:
            screen.write_json(state)
        elif "--watch" in options:
            screen.begin()
            screen.write(text(screen, state))
        else:
            screen.write(text(screen, state))
        return state

    if "--watch" in options:
        from usb_proxy.tool import watch  # noqa: PLC0415 (most runs need none of it)

        watch.watch(host, show)
    else:
        show(None)
    return 0


def text(screen: Screen, state: Overview) -> str:
    """The state as people read it."""
    parts = []
    head: tuple[str, ...]
    if state["devices"]:
        head = ("DEVICE", "ID", "NAME", "ATTACHED TO", "SINCE")
        parts.append(screen.table(head, [_of_device(each) for each in state["devices"]]))
        parts += [_of_use(each) for each in state["devices"] if each["used_by"]]
    if state["attachments"]:
        head = ("ATTACHED FROM", "ID", "NAME", "PORT", "SPEED", "HERE", "SINCE")
        parts.append(screen.table(head, [_of_port(each) for each in state["attachments"]]))
        for each in state["attachments"]:
            parts += map(_of_interface, each["unannounced"])
    if not parts:
        parts.append("No USB device is plugged into this qube or attached to it.\n")
    if state["leftovers"]:
        head = ("LEFT BY A DEAD PROCESS", "SINCE")
        rows = [(overview.in_words(each), _when(each["since"])) for each in state["leftovers"]]
        parts.append(screen.table(head, rows))
        parts.append("'qubes-usb-proxy repair' cleans that up.\n")
    return "\n".join(parts)


def _of_device(device: Device) -> tuple[str, ...]:
    state = device["state"]
    if state == overview.ATTACHED:
        where = device["peer"] or "a qube"
    else:
        where = NOTHING if state == overview.FREE else f"({state})"
    if device["used_by"]:
        where = "(in use here)"
    product = f"{device['vendor']}:{device['product']}"
    return device["device"], product, device["name"], where, _when(device["since"])


def _of_use(device: Device) -> str:
    return f"{device['device']} is in use in this qube: {'; '.join(device['used_by'])} [UP-410].\n"


def _of_port(port: UsedPort) -> tuple[str, ...]:
    source = f"{port['backend'] or '?'}:{port['device'] or '?'}"
    if port["state"] != overview.ATTACHED:
        source += f" ({port['state']})"
    product = f"{port['vendor']}:{port['product']}" if port["vendor"] else NOTHING
    speed = f"{port['speed']}M" if port["speed"] else NOTHING
    here = port["here"] or NOTHING
    name = port["name"] or NOTHING
    return source, product, name, str(port["port"]), speed, here, _when(port["since"])


def _of_interface(name: str) -> str:
    return f"Interface {name} was not announced by dom0, so it has no driver [UP-642].\n"


def _when(since: int | None) -> str:
    if since is None:
        return NOTHING
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(since))
