# SPDX-License-Identifier: GPL-2.0-or-later
"""What qubes may cost qubesd: one turn after the other, a tenth of its time altogether.

What QubesDB or libvirt keep it waiting in a turn, beyond `TURN_LIMIT`, is not in that tenth.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

REST = 12
"""Each turn is followed by this many times its length, in which everything else goes on. What a
qube causes outside of turns, such as the news of a change, has its part of the tenth, too."""

TURN_SECONDS = 0.0001
"""What the loop needs to come to a turn and to go on after it."""

TURN_LIMIT = 0.05
"""A qube cannot make a turn cost more. One that is longer has waited, for QubesDB or libvirt: that
is no reason to keep other qubes waiting as well, and they rest no longer than after this."""

SLOW_LIMIT = 1.0
"""The qube itself rests no longer than after this."""


class _Rest:
    """Turns of which no two are at once, and when the next may begin."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.until = 0.0


class Pace:
    """Turns of whoever does what an untrusted qube has caused.

    Those of one qube are first come, first served; qubes take them one after the other.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._all = _Rest()
        self._of: defaultdict[str, _Rest] = defaultdict(_Rest)

    def free(self, qube: str) -> bool:
        """Whether a turn of that qube would begin at once."""
        now = self._here().time()
        return all(not rest.turn.locked() and now >= rest.until for rest in self._both(qube))

    def spent(self, qube: str, seconds: float) -> None:
        """Seconds were spent in a turn, or instead of one."""
        now = self._here().time()
        for rest, limit in zip(self._both(qube), (SLOW_LIMIT, TURN_LIMIT), strict=True):
            rest.until = max(rest.until, now) + REST * min(seconds + TURN_SECONDS, limit)

    def forget(self, qube: str) -> None:
        """A qube exists no more."""
        self._of.pop(qube, None)

    @asynccontextmanager
    async def turn(self, qube: str, seconds: float = 0.0) -> AsyncIterator[None]:
        """Wait for a turn; what is done in it must not wait. It counts as `seconds` at least."""
        loop = self._here()
        mine, everybody = self._both(qube)
        async with mine.turn:
            await asyncio.sleep(max(0.0, mine.until - loop.time()))
            async with everybody.turn:
                await asyncio.sleep(max(0.0, everybody.until - loop.time()))
                started = loop.time()
                try:
                    yield
                finally:
                    self.spent(qube, max(seconds, loop.time() - started))

    def _both(self, qube: str) -> tuple[_Rest, _Rest]:
        return self._of[qube], self._all

    def _here(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._all = loop, _Rest()
            self._of.clear()
        return loop
