# SPDX-License-Identifier: GPL-2.0-or-later
"""How often, and how soon, a device is tried again that could not be attached, or did not stay."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from usb_proxy.dom0 import records

if TYPE_CHECKING:
    from usb_proxy.dom0.qubesd import Port

PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
"""Seconds before each new try: a device takes this long to come back after resume or a reset."""

STEADY_SECONDS = 15.0
"""A connection that dies earlier than this was a try, but for the first such."""


class Tries:
    """By port: when a device was attached, and how many times in a row it has died at once."""

    def __init__(self) -> None:
        self._lately: dict[Port, tuple[float, int]] = {}

    def attached(self, port: Port) -> None:
        """A try has succeeded."""
        _, died = self._lately.get(port, (0.0, 0))
        self._lately[port] = asyncio.get_running_loop().time(), died

    def begin(self, port: Port, *, anew: bool) -> None:
        """Find out why it is to be attached: it may have died, but not where all is `anew`."""
        if port in self._lately:
            since, died = self._lately[port]
            soon = asyncio.get_running_loop().time() - since < STEADY_SECONDS
            again = soon and records.reason(port.backend_domain, port.port_id) == "died"
            self._lately[port] = since, died + 1 if again and not anew else 0

    def pauses(self, port: Port) -> list[float]:
        """Seconds before each try that is left."""
        _, died = self._lately.get(port, (0.0, 0))
        return [0.0, *PAUSES][max(0, died - 1) :]

    def forget(self, name: str) -> None:
        """A backend ended."""
        for port in [port for port in self._lately if port.backend_domain.name == name]:
            del self._lately[port]
