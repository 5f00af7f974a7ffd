# SPDX-License-Identifier: GPL-2.0-or-later
"""usb-reset DEVICE: reset a USB device of this qube, as if it were plugged in again."""

from __future__ import annotations

from usb_proxy.backend import usage, usbip_host
from usb_proxy.errors import InUseError, RequestError, SystemLackError
from usb_proxy.idents import parse_target

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from usb_proxy.host import Host


def main(arguments: Sequence[str], host: Host) -> int:
    """Return once the kernel has reset the device."""
    if len(arguments) != 2:
        raise RequestError("UP-223")
    target = parse_target(arguments[1])
    if not host.is_root():
        raise SystemLackError("UP-708", tried="reset", device=target)
    bus_id = usbip_host.look_up(host, target)
    with usbip_host.open_usable(host, bus_id, target) as device:
        if usbip_host.is_in_use(device):
            raise InUseError("UP-401", device=bus_id)
        with usage.Claim(host, device):
            device.reset()
    return 0
