# SPDX-License-Identifier: GPL-2.0-or-later
"""What was ended all at once must not begin again by itself, nor while the computer is suspended.

All times are of a clock that goes on in suspend (CLOCK_BOOTTIME).
"""

from __future__ import annotations

import time

from usb_proxy.errors import StoppedError, SystemLackError, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usb_proxy.host import Host

MARK = "/run/qubes-usb-proxy.detached-all"
"""A link that says when all was ended, and until when nothing may begin; see `locks.Lock.tell`.
Resume removes it: `/etc/qubes/suspend-post.d`."""

SUSPEND_SECONDS = 120.0
"""How long nothing begins if resume is never told of. dom0 asks all qubes before it suspends."""


def now() -> float:
    """The time, in seconds."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def mark(host: Host, is_suspend: bool) -> None:
    """From here on whoever began before ends; and in suspend nothing begins until resume."""
    at = now()
    # Whoever detaches all by hand does not end a suspend that is about to begin.
    until = max(at + SUSPEND_SECONDS * is_suspend, _times(host)[1])
    fresh = f"{MARK}.{host.pid()}"
    try:
        host.remove(fresh)  # Of one that died.
        host.make_link(fresh, f"{at:.6f} {until:.6f}")
        try:
            host.rename(fresh, MARK)
        except OSError:
            host.remove(fresh)
            raise
    except OSError as error:
        raise SystemLackError("UP-717", path=MARK, reason=reason(error)) from error


def _times(host: Host) -> tuple[float, float]:
    """When all was ended last, and until when nothing may begin; zeros without a mark."""
    try:
        at, until = map(float, host.read_link(MARK).split())
    except (OSError, ValueError):
        return 0.0, 0.0
    return at, until


def check(host: Host, began: float) -> None:
    """StoppedError if all was ended since `began`, or if the computer is about to suspend.

    To be asked with a lock in hand: who ends all asks the holders of locks after the mark is there.
    """
    at, until = _times(host)
    if began <= at:
        raise StoppedError("UP-804")
    if now() < until:
        raise StoppedError("UP-805")
