# SPDX-License-Identifier: GPL-2.0-or-later
"""usb-repair: clean up after exporters and importers that were killed."""

from __future__ import annotations

from usb_proxy import qrexec, repair

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from usb_proxy.host import Host


def main(_arguments: Sequence[str], host: Host) -> int:
    """Return once nothing of a dead process is left in this qube."""
    qrexec.require_root(host)
    repair.repair(host)
    return 0
