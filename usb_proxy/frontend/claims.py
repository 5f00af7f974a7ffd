# SPDX-License-Identifier: GPL-2.0-or-later
"""Ports of this qube whose device is judged: a file of root's for each, `announced-BUSID`.

It has the attachment, and once the device is *covered* its number: all its configurations were
announced. `gates` writes them.
"""

from __future__ import annotations

from usb_proxy import locks
from usb_proxy.sysfs import DEVICES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usb_proxy.host import Host

CLAIM = "announced-"
SEVERAL = " several"
"""What the claim of a covered device with more than one configuration ends with."""


def is_claimed(host: Host, bus_id: str) -> bool:
    """Whether the device in a port is judged."""
    return host.exists(f"{locks.LOCKS}/{CLAIM}{bus_id}")


def attachments(host: Host) -> dict[str, str]:
    """All claims: the bus id in this qube, and the attachment that it is for."""
    return {bus_id: noted.partition(" ")[0] for bus_id, noted in _read(host, CLAIM).items()}


def on(host: Host, bus: str) -> dict[str, str]:
    """What the claims on one bus say, by bus id."""
    return _read(host, f"{CLAIM}{bus}-")


def _read(host: Host, prefix: str) -> dict[str, str]:
    found = {}
    for name in host.listing(locks.LOCKS):
        try:
            if name.startswith(prefix):
                found[name.removeprefix(CLAIM)] = host.read(f"{locks.LOCKS}/{name}").strip()
        except FileNotFoundError:
            pass  # It has been withdrawn meanwhile.
    return found


def are_covered(host: Host, claimed: dict[str, str]) -> bool:
    """Whether all these devices are covered, and each is still the same."""
    for bus_id, noted in claimed.items():
        number = noted.removesuffix(SEVERAL).partition(" ")[2]
        try:
            if number != host.read(f"{DEVICES}/{bus_id}/devnum").strip():
                return False
        except OSError:
            return False
    return True
