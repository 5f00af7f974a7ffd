# SPDX-License-Identifier: GPL-2.0-or-later
"""detach DEVICE: end the attachment of one device, on the side of this qube."""

from __future__ import annotations

from usb_proxy.idents import BusId, DomainName, parse_target
from usb_proxy.tool import root
from usb_proxy.tool.overview import overview
from usb_proxy.tool.screen import Screen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from usb_proxy.host import Host


def main(_options: object, names: Sequence[str], host: Host) -> int:
    """Return once the device is back with this qube, or gone from it: the exit code."""
    untrusted_backend, colon, untrusted_device = names[0].rpartition(":")
    if colon:
        return _detach(host, untrusted_backend, untrusted_device)
    bus_id = BusId(names[0])
    for each in overview(host)["attachments"]:
        # A device may also be named as the kernel of this qube does.
        if each["here"] == bus_id and each["backend"] and each["device"]:
            return _detach(host, each["backend"], each["device"])
    if not host.is_root():
        return root.run(host, ["detach", bus_id])
    from usb_proxy.backend import exports  # noqa: PLC0415

    exports.take_back(host, bus_id)
    Screen(host).write(f"{bus_id} is back in this qube.\n")
    return 0


def _detach(host: Host, untrusted_backend: str, untrusted_device: str) -> int:
    backend = DomainName(untrusted_backend)
    target = parse_target(untrusted_device)
    if not host.is_root():
        return root.run(host, ["detach", f"{backend}:{target}"])
    from usb_proxy.frontend import imports  # noqa: PLC0415 (one wing is enough)

    imports.detach(host, backend, target)
    Screen(host).write(f"{backend}:{target} is detached from this qube.\n")
    return 0
