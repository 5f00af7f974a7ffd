# SPDX-License-Identifier: GPL-2.0-or-later
"""usb-repair: clean up after exporters and importers that were killed."""

from __future__ import annotations

from usb_proxy import repair
from usb_proxy.errors import SystemLackError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from usb_proxy.host import Host


def main(_arguments: Sequence[str], host: Host) -> int:
    """Return once nothing of a dead process is left in this qube."""
    if not host.is_root():
        raise SystemLackError("UP-781", command="qubes-usb-proxy repair")
    repair.repair(host)
    return 0
