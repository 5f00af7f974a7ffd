# SPDX-License-Identifier: GPL-2.0-or-later
"""What dom0 is told, in this qube's QubesDB."""

from __future__ import annotations

import posix as os

from usb_proxy.errors import SystemLackError, printable
from usb_proxy.idents import BusId, DomainName, qubesdb_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usb_proxy.host import Host

_CHANGED = ("/qubes-usb-devices", "")
"""Written after each change, for dom0's watch to fire."""


def publish(host: Host, bus_id: BusId, frontend: DomainName) -> None:
    """Tell dom0 that a device is connected to `frontend`; SystemLackError without QubesDB."""
    key = qubesdb_key(bus_id)
    connected = (f"{key}/connected-to", frontend.owner, f"{key}/x-pid", str(os.getpid()))
    _write(host, *connected, *_CHANGED)


def unpublish(host: Host, bus_id: BusId) -> None:
    """Tell dom0 that a device is connected to no qube; SystemLackError without QubesDB."""
    key = qubesdb_key(bus_id)
    code, untrusted_errors = host.run(["qubesdb-rm", f"{key}/connected-to", f"{key}/x-pid"])
    # It also fails when there was nothing to remove.
    if code and host.run(["qubesdb-read", f"{key}/connected-to"])[0] == 0:
        raise _failure("qubesdb-rm", code, untrusted_errors)
    _write(host, *_CHANGED)


def _write(host: Host, *pairs: str) -> None:
    code, untrusted_errors = host.run(["qubesdb-write", *pairs])
    if code:
        raise _failure("qubesdb-write", code, untrusted_errors)


def _failure(command: str, code: int, untrusted_errors: bytes) -> SystemLackError:
    said = printable(untrusted_errors) or f"exit code {code}"
    return SystemLackError("UP-710", command=command, said=said)
