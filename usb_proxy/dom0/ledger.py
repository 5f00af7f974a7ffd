# SPDX-License-Identifier: GPL-2.0-or-later
"""What has been announced of a backend's devices, against what is seen now. No input, no output."""

from __future__ import annotations

from typing import NamedTuple


class Seen(NamedTuple):
    """What is in a port."""

    device_id: str
    frontend: str | None
    """The qube that it is attached to."""


class Change(NamedTuple):
    """What happened in one port, in the order in which it has to be told."""

    port: str
    detached: str | None
    removed: bool
    added: bool
    attached: str | None


def change(port: str, old: Seen | None, new: Seen | None) -> Change | None:
    """What to tell of a port so that `old` becomes `new`; None if there is nothing.

    Another device in the same port is one removed and one added, whatever was missed in between.
    """
    if old == new:
        return None
    another = old is None or new is None or old.device_id != new.device_id
    before = old.frontend if old else None
    after = new.frontend if new else None
    moved = another or before != after
    return Change(
        port,
        detached=before if moved else None,
        removed=another and old is not None,
        added=another and new is not None,
        attached=after if moved else None,
    )
