# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a program by its name, and turns what goes wrong into a sentence and an exit code."""

from __future__ import annotations

import os

from usb_proxy.errors import ExitCode, UsbProxyError
from usb_proxy.host import Host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PROGRAMS = (
    "usb-attach",
    "usb-detach",
    "usb-detach-all",
    "usb-export",
    "usb-import",
    "usb-repair",
    "usb-reset",
)


def load(name: str) -> Callable[[Sequence[str], Host], int]:
    """The `main` of a program, and no other's module; KeyError for what is none of `PROGRAMS`."""
    if name not in PROGRAMS:
        raise KeyError(name)
    module = __import__(f"usb_proxy.commands.{name.replace('-', '_')}", fromlist=["main"])
    main: Callable[[Sequence[str], Host], int] = module.main
    return main


def run(main: Callable[[Sequence[str], Host], int], arguments: Sequence[str], host: Host) -> int:
    """Call a `main` with its name and arguments; gives the exit code, and raises nothing."""
    name = os.path.basename(arguments[0])
    try:
        return main(arguments, host)
    except UsbProxyError as error:
        # What went wrong first, then what went wrong in cleaning up.
        chain: list[BaseException] = [error]
        while (earlier := chain[0].__context__) is not None:
            chain.insert(0, earlier)
        told = [failure for failure in chain if isinstance(failure, UsbProxyError)]
        host.say(f"{name}: " + "; then: ".join(dict.fromkeys(map(str, told))))
        first = told[0]
        return first.code if isinstance(first, UsbProxyError) else ExitCode.INTERNAL
    except Exception as error:
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place else "?"
        host.say(f"{name}: internal error, please report it: {error!r} at {where}")
        return ExitCode.INTERNAL


def start(arguments: Sequence[str]) -> int:
    """Run the program `arguments[0]` on this machine."""
    host = Host()
    host.guard_signals()
    return run(load(arguments[0]), arguments, host)
