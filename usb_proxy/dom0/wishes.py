# SPDX-License-Identifier: GPL-2.0-or-later
"""What the user has let go of: it stays free until it is plugged in again, or wanted again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from usb_proxy.dom0.qubesd import Port

BOUNCE_SECONDS = 5.0
"""Some devices leave the bus when they are given back to their driver, and not later than this."""

GAP_SECONDS = 1.5
"""Such a device is back after 0.2 to 1 second; who pulls one and plugs it in takes longer."""

END_SECONDS = 10.0
"""A qube that is shut down from inside gives back what it has, and ends not much later."""


@dataclass
class _LetGo:
    device_id: str
    frontend: str
    """The qube that had it; '' if the user wanted it in none, or qubesd has started since."""
    asleep: bool
    """It was given back for suspend: the user wants it again after that."""
    since: float
    asked: bool
    """The user said so to dom0. If not, one of the two qubes did it, maybe as it ended."""
    left: float | None = None
    """When it left the bus, if it has."""


class Wishes:
    """The devices that are let go of, by port."""

    def __init__(self) -> None:
        self._let_go: dict[Port, _LetGo] = {}
        self._ending: dict[str, float] = {}

    def let_go(
        self,
        port: Port,
        device_id: str,
        frontend: str,
        *,
        asleep: bool = False,
        asked: bool = True,
    ) -> None:
        """A device was taken from its qube by whoever uses one of the two."""
        try:
            now = asyncio.get_running_loop().time()
        except RuntimeError:  # qubesd starts, and it was long ago
            now = 0.0
        for other, one in list(self._let_go.items()):
            if one.left is not None and now - one.left > GAP_SECONDS:
                del self._let_go[other]
        self._let_go[port] = _LetGo(device_id, frontend, asleep, now, asked)

    def free(self, port: Port) -> bool:
        """Whether what is in a port may be attached by itself."""
        return port not in self._let_go

    def of(self, port: Port) -> str | None:
        """The qube that had what is let go of in a port; '' if the user wanted it in none."""
        one = self._let_go.get(port)
        return one.frontend if one else None

    def left(self, port: Port) -> None:
        """The device in a port left the bus."""
        if one := self._let_go.get(port):
            one.left = asyncio.get_running_loop().time()
            # One that nobody had was not given back, so it was pulled.
            if not one.frontend or one.left - one.since > BOUNCE_SECONDS:
                del self._let_go[port]

    def came(self, port: Port, device_id: str) -> None:
        """A device came: plugged in, or back from a reset, which changes no wish."""
        if one := self._let_go.get(port):
            now = asyncio.get_running_loop().time()
            if one.left is None or one.device_id != device_id or now - one.left > GAP_SECONDS:
                del self._let_go[port]
            else:
                one.since, one.left = now, None

    def wanted(self, port: Port, frontend: str | None = None) -> None:
        """It is wanted again: in any qube, or in `frontend`, if that is the one that had it."""
        one = self._let_go.get(port)
        if one and frontend in (None, one.frontend):
            del self._let_go[port]

    def asleep(self, name: str) -> Iterator[tuple[Port, str]]:
        """What was given back for suspend, and by whom, where a qube is one of the two sides."""
        for port, one in list(self._let_go.items()):
            if one.asleep and name in (one.frontend, port.backend_domain.name):
                yield port, one.frontend

    def ending(self, name: str) -> None:
        """A qube is told to shut down: what it gives back from now on is nobody's wish."""
        self._ending[name] = asyncio.get_running_loop().time()

    def goes_on(self, name: str) -> None:
        """It does not shut down."""
        self._ending.pop(name, None)

    def ended(self, name: str) -> list[Port]:
        """A qube ended: what it gave back on its way out, and is wanted again from now on."""
        since = self._ending.pop(name, asyncio.get_running_loop().time() - END_SECONDS)
        found = [
            port
            for port, one in self._let_go.items()
            if one.frontend == name
            and one.since >= since
            and not (one.asked or one.asleep or one.left is not None)
        ]
        for port in found:
            del self._let_go[port]
        return found

    def forget(self, name: str) -> None:
        """A qube exists no more, or what it exposed does not."""
        for port in [port for port in self._let_go if port.backend_domain.name == name]:
            del self._let_go[port]
