# SPDX-License-Identifier: GPL-2.0-or-later
"""Events: handlers of a class, found through its parents, parents last or (pre-event) first."""

import asyncio
import fnmatch
from collections import defaultdict
from typing import Any


class Emitter:
    __handlers__: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__handlers__ = defaultdict(set)

    def __init__(self) -> None:
        self.events_enabled = False
        self.__handlers__ = defaultdict(set)

    def add_handler(self, event: str, function: Any) -> None:
        self.__handlers__[event].add(function)

    def _call(self, event: str, pre_event: bool, arguments: Any) -> tuple[list[Any], list[Any]]:
        effects: list[Any] = []
        waiting: list[Any] = []
        if not self.events_enabled:
            return effects, waiting
        holders: list[Any] = [self, *(c for c in type(self).__mro__ if "__handlers__" in vars(c))]
        for holder in holders if pre_event else reversed(holders):
            names = [name for name in holder.__handlers__ if fnmatch.fnmatch(event, name)]
            for function in [f for name in names for f in holder.__handlers__[name]]:
                effect = function(self, event, **arguments)
                if asyncio.iscoroutinefunction(function):
                    waiting.append(effect)
                elif effect is not None:
                    effects.extend(effect)
        return effects, waiting

    def fire_event(self, event: str, pre_event: bool = False, **arguments: Any) -> list[Any]:
        effects, waiting = self._call(event, pre_event, arguments)
        if waiting:
            raise RuntimeError(f"async handlers for {event}")
        return effects

    async def fire_event_async(
        self, event: str, pre_event: bool = False, **arguments: Any
    ) -> list[Any]:
        effects, waiting = self._call(event, pre_event, arguments)
        if waiting:
            done, _ = await asyncio.wait([asyncio.create_task(one) for one in waiting])
            for task in done:
                effects.extend(task.result() or ())
        return effects
