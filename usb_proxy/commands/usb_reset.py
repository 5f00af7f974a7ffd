# SPDX-License-Identifier: GPL-2.0-or-later
"""usb-reset DEVICE: reset a USB device of this qube, as if it were plugged in again."""

from __future__ import annotations

from usb_proxy import qrexec, sysfs
from usb_proxy.backend import usage
from usb_proxy.errors import RequestError
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
    qrexec.require_root(host)
    bus_id = sysfs.look_up(host, target)
    with sysfs.open_usable(host, bus_id, target) as device, usage.Claim(host, device):
        device.reset()
    return 0
