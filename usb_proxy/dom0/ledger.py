# SPDX-License-Identifier: GPL-2.0-or-later
"""What has been announced of a backend's devices, against what is seen now. No input, no output."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
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


def changes(
    known: Mapping[str, Seen], seen: Mapping[str, Seen], held: Container[str]
) -> Iterator[Change]:
    """What to tell so that `known` becomes `seen`, but for ports that are `held`.

    Another device in the same port is one removed and one added, whatever was missed in between.
    """
    for port in sorted(known.keys() | seen.keys()):
        old, new = known.get(port), seen.get(port)
        if port in held or old == new:
            continue
        another = old is None or new is None or old.device_id != new.device_id
        before = old.frontend if old else None
        after = new.frontend if new else None
        moved = another or before != after
        yield Change(
            port,
            detached=before if moved else None,
            removed=another and old is not None,
            added=another and new is not None,
            attached=after if moved else None,
        )
