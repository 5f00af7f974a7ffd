# SPDX-License-Identifier: GPL-2.0-or-later
"""Which qube has which devices, as the backends' QubesDB says now."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from usb_proxy.dom0 import records
from usb_proxy.dom0.device import USBDevice
from usb_proxy.dom0.qubesd import local_qubes

if TYPE_CHECKING:
    from usb_proxy.dom0.qubesd import Qube

SECONDS = 0.1
"""What a backend says is good for so long, or until it changes something."""


class Claims:
    """A client that lists devices asks for each qube in turn: each backend is read once for all."""

    def __init__(self) -> None:
        self._read: dict[str, tuple[float, list[tuple[str, USBDevice]]]] = {}

    def attached(self, vm: Qube) -> list[USBDevice]:
        """The devices that a qube has."""
        now = _time()
        claims = [claim for backend in local_qubes(vm.app) for claim in self._of(backend, now)]
        return [one for name, one in claims if name == vm.name and one.attachment == vm]

    def changed(self, name: str) -> None:
        """A backend changed something, or exists no more."""
        self._read.pop(name, None)

    def _of(self, backend: Qube, now: float | None) -> list[tuple[str, USBDevice]]:
        since, claims = self._read.get(backend.name, (0.0, []))
        if now is None or backend.name not in self._read or now > since + SECONDS:
            ports = records.listed(backend)
            named = [(records.frontend(backend, port), port) for port in ports]
            claims = [(name, USBDevice.at(backend, port)) for name, port in named if name]
            self._read[backend.name] = now or 0.0, claims
        return claims


def _time() -> float | None:
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:
        return None
