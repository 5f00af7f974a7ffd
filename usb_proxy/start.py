# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a program by its name, and turns what goes wrong into a sentence and an exit code."""

from __future__ import annotations

import errno
import posix as os

from usb_proxy.errors import (
    ExitCode,
    SystemLackError,
    UsbProxyError,
    history,
    in_words,
    printable,
    reason,
    sentence,
)
from usb_proxy.host import Host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SHORTAGES = (
    errno.EDQUOT,
    errno.EFBIG,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOSPC,
)
"""Answers of a kernel that has, or may give, no more of what any program needs."""

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
        chain = history(error)
        # An OSError in the middle has become the sentence that follows it.
        told = [e for e in chain if isinstance(e, UsbProxyError)] or _shortage(chain[0])
        sentences: list[object] = [*told]
        is_defect = not told or not isinstance(chain[0], UsbProxyError | OSError | MemoryError)
        if is_defect:
            sentences.insert(0, _defect(chain[0]))
        host.say(f"{name}: {in_words(sentences)}")
        return ExitCode.INTERNAL if is_defect else told[0].code


def _shortage(error: BaseException) -> list[UsbProxyError]:
    """What to tell of an exception that is no defect, but a machine that is full; else nothing."""
    if isinstance(error, MemoryError):
        what = "Cannot allocate memory"
    elif isinstance(error, OSError) and error.errno in SHORTAGES:
        what = reason(error)
    else:
        return []
    return [SystemLackError("UP-723", reason=what)]


def _defect(error: BaseException) -> str:
    """What to tell of an exception that is none of ours."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place else "?"
    return sentence(
        "UP-101", error=printable(repr(error).encode(errors="replace"), 300), place=where
    )


def start(arguments: Sequence[str]) -> int:
    """Run the program `arguments[0]`, one of `PROGRAMS`, on this machine."""
    host = Host()
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:  # Closed: what is opened first would be taken for it, and be written to.
            os.open("/dev/null", os.O_RDWR)
    if not arguments or arguments[0] not in PROGRAMS:
        host.say("launch: " + sentence("UP-224", programs=", ".join(PROGRAMS)))
        return ExitCode.REQUEST

    def main(arguments: Sequence[str], host: Host) -> int:
        host.guard_signals()
        return load(arguments[0])(arguments, host)

    return run(main, arguments, host)
