# SPDX-License-Identifier: GPL-2.0-or-later
"""qubes.USBDetach: in a frontend `BACKEND DEVICE` on stdin, in a backend `DEVICE`."""

from __future__ import annotations

from usb_proxy import qrexec
from usb_proxy.errors import RequestError
from usb_proxy.idents import BusId, DomainName, parse_target

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from usb_proxy.host import Host


def main(_arguments: Sequence[str], host: Host) -> int:
    """Return once the device is gone from this frontend, or back with this backend."""
    untrusted_fields = qrexec.read_lines(host)[0].split()
    if len(untrusted_fields) == 2:
        backend = DomainName(untrusted_fields[0])
        target = parse_target(untrusted_fields[1])
        qrexec.require_root(host, "qubes.USBDetach")
        from usb_proxy.frontend import imports  # noqa: PLC0415 (one wing is enough)

        imports.detach(host, backend, target)
    elif len(untrusted_fields) == 1:
        bus_id = BusId(untrusted_fields[0])
        qrexec.require_root(host, "qubes.USBDetach")
        from usb_proxy.backend import exports  # noqa: PLC0415

        exports.take_back(host, bus_id)
    else:
        raise RequestError("UP-218")
    return 0
