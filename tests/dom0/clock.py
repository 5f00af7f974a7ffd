# SPDX-License-Identifier: GPL-2.0-or-later
"""An event loop whose clock jumps to the next timer: tests of minutes, in milliseconds."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class Clock(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        selector: Any = self._selector  # type: ignore[attr-defined]
        select = selector.select

        def jump(timeout: float | None) -> Any:
            assert timeout is not None, "everybody waits, and for nothing"
            self.now += max(timeout, 0.0)
            return select(0)

        selector.select = jump

    def time(self) -> float:
        return self.now


def run(main: Coroutine[Any, Any, None]) -> float:
    """Run to the end; the seconds that it took by the clock of the loop."""
    with asyncio.Runner(loop_factory=Clock) as runner:
        runner.run(main)
        return runner.get_loop().time()
