# SPDX-License-Identifier: GPL-2.0-or-later
"""usb-detach-all: end every attachment of this qube, on either side; run before suspend."""

from __future__ import annotations

from usb_proxy import leftovers, qrexec, runstate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from usb_proxy.host import Host


def main(_arguments: Sequence[str], host: Host) -> int:
    """Return once nothing is attached to or from this qube."""
    qrexec.require_root(host)
    locks = [runstate.Lock(host, name) for name in runstate.lock_names(host)]
    holders = [holder for lock in locks if (holder := lock.stop_holder()) is not None]
    try:
        leftovers.require_end(host, holders)
    finally:
        leftovers.repair(host)
    return 0
