# SPDX-License-Identifier: GPL-2.0-or-later
"""Qubes, as far as something happens to them."""

import asyncio
import inspect
from collections import defaultdict
from collections.abc import Callable
from typing import Any, ClassVar

Handlers = defaultdict[str, set[Callable[..., Any]]]


class Emitter:
    """Somebody has `fire_event` called; whoever is interested has asked to be called."""

    __handlers__: ClassVar[Handlers] = defaultdict(set)
    """Those of all qubes."""

    def __init__(self) -> None:
        self.events_enabled = False
        self._mine: Handlers = defaultdict(set)

    def add_handler(self, event: str, function: Callable[..., Any]) -> None:
        """Those of this qube: they come last, or first where they may object."""
        self._mine[event].add(function)

    def fire_event(self, event: str, pre_event: bool = False, **details: Any) -> list[Any]:
        """Everything that the handlers give, in one list; for one that is async, its coroutine."""
        both = (self._mine, self.__handlers__) if pre_event else (self.__handlers__, self._mine)
        given: list[Any] = []
        for function in [each for one in both if self.events_enabled for each in one[event]]:
            answer = function(self, event, **details)
            given += [answer] if inspect.isawaitable(answer) else answer or ()
        return given

    async def fire_event_async(
        self, event: str, pre_event: bool = False, **details: Any
    ) -> list[Any]:
        """The same, with what the coroutines give."""
        given = self.fire_event(event, pre_event, **details)
        slow = [each for each in given if inspect.isawaitable(each)]
        late = await asyncio.gather(*slow)
        return [each for each in given if each not in slow] + [
            x for more in late for x in more or ()
        ]


class BaseVM(Emitter):
    """Two are the same if they have the same number."""

    qid: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BaseVM) and other.qid == self.qid

    def __hash__(self) -> int:
        return self.qid


class LocalVM(BaseVM):
    """One of this machine."""

    _qdb_watch_paths: set[str]

    def watch_qdb_path(self, path: str) -> None:
        """Whoever wants to hear of changes says so."""
        self._qdb_watch_paths |= {path}
