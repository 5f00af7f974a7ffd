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
    holders = [lock.stop_holder() for lock in locks]
    deadline = host.now() + leftovers.END_SECONDS
    for holder in holders:
        if holder is not None:
            leftovers.require_end(host, holder, deadline)
    leftovers.repair(host)
    return 0
