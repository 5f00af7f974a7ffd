# SPDX-License-Identifier: GPL-2.0-or-later
"""What dom0 is told, in this qube's QubesDB."""

from __future__ import annotations

from usb_proxy.errors import SystemLackError, printable
from usb_proxy.idents import QUBESDB, BusId, DomainName, qubesdb_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usb_proxy.host import Host

_CHANGED = (QUBESDB, "")
"""Written after each change, for dom0's watch to fire."""

DETACHED, DIED = "detached", "died"
"""Why an attachment ended, for dom0: somebody asked for that, or it broke."""


def publish(host: Host, bus_id: BusId, frontend: DomainName) -> None:
    """Tell dom0 that a device is connected to `frontend`; SystemLackError without QubesDB.

    How it will end if all goes well is told at once: it counts when `connected-to` has gone.
    """
    key = qubesdb_key(bus_id)
    connected = (f"{key}/connected-to", frontend.owner, f"{key}/x-pid", str(host.pid()))
    _write(host, *connected, f"{key}/x-ended", DETACHED, *_CHANGED)


def unpublish(host: Host, bus_id: BusId, is_plugged: bool, why: str = DETACHED) -> None:
    """Tell dom0 that a device is connected to no qube, and why; SystemLackError without QubesDB.

    Of one that was unplugged nothing is told but that: udev removes all that there is of it, and
    whatever was written after that would be one more device for dom0.
    """
    key = qubesdb_key(bus_id)
    keys = [f"{key}/connected-to", f"{key}/x-pid"]
    if not is_plugged:
        keys.append(f"{key}/x-ended")
    elif why != DETACHED:
        _write(host, f"{key}/x-ended", why)
    code, untrusted_errors = host.run(["qubesdb-rm", *keys])
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
