# SPDX-License-Identifier: GPL-2.0-or-later
"""repair: clean up after processes that have died."""

from __future__ import annotations

from usb_proxy import repair
from usb_proxy.tool import root
from usb_proxy.tool.overview import in_words, overview
from usb_proxy.tool.screen import Screen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usb_proxy.host import Host


def main(_options: object, _names: object, host: Host) -> int:
    """Return once nothing of a dead process is left: the exit code."""
    if not host.is_root():
        return root.run(host, ["repair"])
    found = overview(host)["leftovers"]
    repair.repair(host)
    screen = Screen(host)
    for left in found:
        screen.write(f"Cleaned up: {in_words(left)}.\n")
    if not found:
        screen.write("Nothing is left over.\n")
    return 0
