# SPDX-License-Identifier: GPL-2.0-or-later
"""usb-detach-all: end every attachment of this qube, on either side.

Where Qubes runs it before suspend, nothing begins until resume.
"""

from __future__ import annotations

from usb_proxy import endings, locks, repair, suspend
from usb_proxy.errors import RequestError, SystemLackError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from usb_proxy.host import Host


SUSPEND = "qubes.SuspendPre"
"""`qubes.SuspendPreAll` runs the link to this program in `/etc/qubes/suspend-pre.d`."""


def main(arguments: Sequence[str], host: Host) -> int:
    """Return once nothing is attached to or from this qube, or waits to be."""
    if len(arguments) != 1:
        raise RequestError("UP-230")
    if not host.is_root():
        raise SystemLackError("UP-781", command="/usr/lib/qubes/usb-detach-all")
    service = host.environment.get("QREXEC_SERVICE_FULL_NAME", "")
    try:
        suspend.mark(host, is_suspend=service.startswith(SUSPEND))
    finally:
        try:
            endings.require_end(host, _stop_all(host))
        finally:
            repair.repair(host)
    return 0


def _stop_all(host: Host) -> list[int]:
    """Ask all exporters and importers to end: pidfds of theirs."""
    holders = []
    for name in locks.lock_names(host):
        try:
            holder = locks.Lock(host, name).stop_holder()
        except SystemLackError:
            continue  # The repair comes to the same lock, and tells of it.
        if holder is not None:
            holders.append(holder)
    return holders
