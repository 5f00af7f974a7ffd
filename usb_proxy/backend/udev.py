# SPDX-License-Identifier: GPL-2.0-or-later
"""What udev knows of a device, from its database, as libudev reads it (systemd, sd-device)."""

from __future__ import annotations

from usb_proxy.host import POLLIN
from usb_proxy.uevents import Uevents

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usb_proxy.host import Host
    from usb_proxy.sysfs import UsbDevice

SECONDS = 1.0
"""How long to wait for udev, which may be waiting for us: it handles nothing more of a device while
a program runs that one of its rules has started (`RUN+=`)."""


def properties(host: Host, device: UsbDevice) -> dict[str, str] | None:
    """The properties of a device; None as long as udev has not noticed it.

    It handles one event of a port after the other: so what was there before has gone for it, too.
    """
    try:
        database = host.read(f"/run/udev/data/c{device.attribute('dev')}")
    except OSError:
        return None
    lines = (line[2:] for line in database.splitlines() if line.startswith("E:") and "=" in line)
    return {name: text for name, _, text in (line.partition("=") for line in lines)}


def await_properties(host: Host, device: UsbDevice) -> dict[str, str]:
    """The same, once udev has noticed the device; none if it does not within `SECONDS`.

    StoppedError at a stop signal.
    """
    known = properties(host, device)
    if known is None:
        deadline = host.now() + SECONDS
        with Uevents() as events:
            while (known := properties(host, device)) is None:
                if not host.wait({events.fileno(): POLLIN}, deadline):
                    return {}
                events.pending()
    return known
