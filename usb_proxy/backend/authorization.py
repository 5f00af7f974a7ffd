# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices that this qube's kernel may not configure (Documentation/usb/authorization.rst).

By the kernel's own setting, or because usbguard blocks them. One that is lent is allowed for as
long as usbip-host has it, so that no driver of this qube ever does.
"""

from __future__ import annotations

from usb_proxy import journal
from usb_proxy.errors import NoDeviceError, SystemLackError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usb_proxy.host import Host
    from usb_proxy.sysfs import UsbDevice

USBGUARD = "usbguard"
USBGUARD_SECONDS = 5.0
"""A command of it may take three in a busy qube, and what it was not told stays so for it. With the
20 s of a reset these are `exports.GIVE_BACK_SECONDS`, which others wait."""


def grant(host: Host, device: UsbDevice) -> None:
    """Authorize a device that usbip-host has; SystemLackError if the kernel refuses.

    usbguard is told, as it would block again what it has not decided about yet.
    """
    _tell_usbguard(host, "allow-device", device)
    if not device.is_authorized():
        device.write("authorized", "1", "authorize")


def tell_of_end(host: Host, device: UsbDevice) -> None:
    """Tell usbguard that a device which was granted is blocked again."""
    if device.is_plugged():
        _tell_usbguard(host, "block-device", device)


def _tell_usbguard(host: Host, what: str, device: UsbDevice) -> None:
    """That fails where its daemon does not run: the kernel's word is what counts.

    Not by the port alone: another device may be in it by now.
    """
    if host.find_command(USBGUARD) is None:
        return
    try:
        rule = f'id {device.product()} via-port "{device.bus_id}"'
        host.run([USBGUARD, what, rule], USBGUARD_SECONDS)
    except NoDeviceError:
        pass
    except SystemLackError as error:  # It hangs. Whoever gives a device back has more to do.
        journal.Entry(host, device.bus_id, USBGUARD, is_import=False).warned(error)
