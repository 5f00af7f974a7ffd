# SPDX-License-Identifier: GPL-2.0-or-later
"""Extensions: one instance for each class, whose own methods are hooked when it is made first."""

from collections.abc import Callable
from typing import Any, Self

import qubes.vm


class System(qubes.events.Emitter):
    """Where handlers of the system go: the application."""


class Extension:
    def __new__(cls) -> Self:
        if "_instance" not in vars(cls):
            made = super().__new__(cls)
            type.__setattr__(cls, "_instance", made)
            for name in list(vars(cls)):
                method = getattr(made, name)
                for event in getattr(method, "ha_events", ()):
                    (method.ha_vm or System).__handlers__[event].add(method)
        instance: Self = vars(cls)["_instance"]
        return instance


def handler(*events: str, system: bool = False) -> Callable[[Any], Any]:
    def mark(function: Any) -> Any:
        function.ha_events = events
        function.ha_vm = None if system else qubes.vm.LocalVM
        return function

    return mark
