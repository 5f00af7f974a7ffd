# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the computer suspends: not for ever, where it failed to and nobody took that back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from usb_proxy.errors import sentence

if TYPE_CHECKING:
    from usb_proxy.dom0.qubesd import Qube

SUSPENDING = Path("/run/qubes/previously-paused.list")
"""It is there from before the computer suspends until it has resumed (PREVIOUSLY_PAUSED in
qubes/api/internal.py), and stays where one qube could not be suspended."""

LIMIT_SECONDS = 120.0
"""It counts for so long, by a clock that stands still while the computer sleeps."""


class Suspending:
    """The file and its age; `overdue` is called with qubesd's application when it is too old."""

    def __init__(self, overdue: Callable[[object], object]) -> None:
        self._overdue = overdue
        self._seen: tuple[int, float] | None = None
        """When the file was written, and first seen."""

    def on(self, path: Path, vm: Qube) -> bool:
        """Whether the computer is about to suspend; `vm` has the log that tells otherwise."""
        written = _written(path)
        if written is None:
            return False
        loop = asyncio.get_running_loop()
        if self._seen is None or self._seen[0] != written:
            self._seen = written, loop.time()
            loop.call_later(LIMIT_SECONDS, self._late, path, written, vm)
        return loop.time() < self._seen[1] + LIMIT_SECONDS

    def _late(self, path: Path, written: int, vm: Qube) -> None:
        if _written(path) == written:
            vm.log.warning("%s", sentence("UP-947", path=path))
            self._overdue(vm.app)


def _written(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
