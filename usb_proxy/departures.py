# SPDX-License-Identifier: GPL-2.0-or-later
"""What is remembered of devices that leave the bus when they are attached."""

from __future__ import annotations

from usb_proxy.errors import SystemLackError, reason
from usb_proxy.runstate import LOCKS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usb_proxy.host import Host
    from usb_proxy.idents import BusId


def remember(host: Host, bus_id: BusId, identity: str, count: int) -> None:
    """Remember how often a device left the bus before it stayed; its export lock must be held.

    One line for a port, of the last device that left there: it is gone at the next boot.
    """
    path = host.root + path_of(bus_id)
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(f"{count} {identity}\n")
    except OSError as error:
        raise SystemLackError("UP-717", path=path, reason=reason(error)) from error


def recall(host: Host, bus_id: BusId, identity: str) -> int | None:
    """What `remember` remembered of this device; None if nothing."""
    try:
        count, _, known = host.read(path_of(bus_id)).rstrip("\n").partition(" ")
    except OSError:
        return None
    return int(count) if known == identity and count.isdigit() else None


def path_of(bus_id: BusId) -> str:
    """Where it is remembered that a device left the bus; mostly there is no such file."""
    return f"{LOCKS}/left-{bus_id}"
