# SPDX-License-Identifier: GPL-2.0-or-later
"""What the ends of exports and imports have in common."""

from __future__ import annotations

import time

from usb_proxy import journal, locks
from usb_proxy.errors import SystemLackError
from usb_proxy.idents import Attachment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from usb_proxy.host import Host

ATTACHED, ENDING = "attached", "ending"
"""What exporter and importer note of themselves: once success was told, and once the end began."""

NEWS_SECONDS = 1.0
"""The news that a connection has ended may still be on its way when the next call is there."""

END_SECONDS = 30.0
"""How long a process may take to end its attachment: above all its own waits for the kernel."""


def require_end(host: Host, holders: Iterable[int]) -> None:
    """Sleep until processes that were told to end have ended, given as pidfds.

    SystemLackError if one has not after `END_SECONDS`.
    """
    deadline = host.now() + END_SECONDS
    ended = [locks.await_end(host, holder, deadline) for holder in holders]
    if not all(ended):
        raise SystemLackError("UP-715")


def note_end(lock: locks.Lock) -> None:
    """Note that what a dead holder left is being ended: whoever else wants it may wait for that.

    `lock` is its lock, held; so far its note says what the dead one did.
    """
    if lock.leftover:
        rest = lock.leftover.removesuffix(f" {ATTACHED}").removesuffix(f" {ENDING}")
        lock.note(f"{rest} {ENDING}")


def why_stopped(host: Host) -> str:
    """For the journal: why this process was told to end, or nothing if it was not.

    SIGTERM comes from whoever detaches in this qube, and when the qube shuts down.
    """
    if not host.stopped_by:
        return ""
    return journal.DETACHED_HERE if host.is_told_to_end() else journal.STOPPED


def tell_of_death(host: Host, lock: locks.Lock) -> None:
    """Tell the journal of the holder of a lock that has died, if there was one."""
    if lock.leftover:
        told, seconds = entry(host, lock)
        told.detached(journal.DIED, seconds)


def entry(host: Host, lock: locks.Lock) -> tuple[journal.Entry, float | None]:
    """The journal's entry of a dead attachment, and for how many seconds that was there."""
    seconds = None
    try:
        told, since = locks.notice(host, lock.name)
        seconds = time.time() - since
    except OSError:
        told = "a qube"  # It died at its very start, or somebody planted something else.
    subject = locks.subject(lock.name)
    if isinstance(subject, Attachment):
        return journal.Entry(host, subject.device, subject.backend, is_import=True), seconds
    return journal.Entry(host, subject, told, is_import=False), seconds


def stop(host: Host, lock: locks.Lock) -> bool:
    """End the process that holds a lock: False if there is none."""
    holder = lock.stop_holder()
    if holder is None:
        return False
    require_end(host, [holder])
    return True
