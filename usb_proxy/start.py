# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a program by its name, and turns what goes wrong into a sentence and an exit code."""

from __future__ import annotations

from usb_proxy.errors import ExitCode, account, sentence
from usb_proxy.host import Host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PROGRAMS = (
    "qubes-usb-proxy",
    "usb-attach",
    "usb-detach",
    "usb-detach-all",
    "usb-export",
    "usb-import",
    "usb-repair",
    "usb-reset",
)


def load(name: str) -> Callable[[Sequence[str], Host], int]:
    """The `main` of one of `PROGRAMS`, importing no other's."""
    module = __import__(f"usb_proxy.commands.{name.replace('-', '_')}", fromlist=["main"])
    main: Callable[[Sequence[str], Host], int] = module.main
    return main


def run(main: Callable[[Sequence[str], Host], int], arguments: Sequence[str], host: Host) -> int:
    """Call a `main` with its name and arguments; gives the exit code, and raises nothing."""
    name = arguments[0].rpartition("/")[2]
    try:
        return main(arguments, host)
    except Exception as error:
        code, told = account(error)
        host.say(f"{name}: {told}")
        return code


def start(arguments: Sequence[str]) -> int:
    """Run the program `arguments[0]`, one of `PROGRAMS`, on this machine."""
    host = Host()
    host.open_standard()
    if not arguments or arguments[0] not in PROGRAMS:
        host.say("launch: " + sentence("UP-224", programs=", ".join(PROGRAMS)))
        return ExitCode.REQUEST

    def main(arguments: Sequence[str], host: Host) -> int:
        host.guard_signals()
        return load(arguments[0])(arguments, host)

    return run(main, arguments, host)
