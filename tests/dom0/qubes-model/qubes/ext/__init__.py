# SPDX-License-Identifier: GPL-2.0-or-later
"""Extensions: there is one of each class, and what is marked in that class alone is called."""

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from qubes.vm import LocalVM

F = TypeVar("F", bound=Callable[..., Any])


class Extension:
    def __new__(cls) -> Any:
        return the_only(cls)  # type: ignore[arg-type]


@cache
def the_only(kind: type) -> Any:
    """The instance, from whose making on its handlers are called."""
    extension: Any = object.__new__(kind)
    for function in vars(kind).values():
        for event in getattr(function, "heard", ()):
            LocalVM.__handlers__[event].add(function.__get__(extension))
    return extension


def handler(*events: str, system: bool = False) -> Callable[[F], F]:
    """Mark a method. Nothing happens to the system here."""

    def mark(function: F) -> F:
        function.heard = () if system else events  # type: ignore[attr-defined]
        return function

    return mark
