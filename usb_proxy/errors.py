# SPDX-License-Identifier: GPL-2.0-or-later
"""What can go wrong, as the user reads it, and the exit code that goes with it."""

from __future__ import annotations

import errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

SHORTAGES = (
    errno.EDQUOT,
    errno.EFBIG,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOSPC,
)
"""Answers of a kernel that has, or may give, no more of what any program needs."""


class ExitCode:
    """Exit codes of every program here; 125-127 and 128+N belong to qrexec and the shell."""

    OK = 0
    INTERNAL = 1
    """A defect of this program."""
    REQUEST = 2
    """What was asked for is malformed, or must not be done."""
    NO_DEVICE = 3
    """The device is not there, or left."""
    IN_USE = 4
    """The device, or every port, is taken."""
    NOT_ATTACHED = 5
    """There is nothing to detach."""
    PEER = 6
    """The other qube said no, said nonsense, or said nothing."""
    SYSTEM = 7
    """This qube lacks something: a module, QubesDB, root."""
    STOPPED = 8
    """A signal ended the program before it was done."""
    WARNING = 9
    """Nothing failed, but something that was found should be looked at."""


def sentence(id: str, /, **fields: object) -> str:
    """What the user reads: the catalogue's words for an id, filled in, with the id behind them.

    A text that is `quoted` and has an id keeps that alone: it leads to the remedy. The catalogue is
    read only now; a program whose files were replaced meanwhile, or that has no memory left, tells
    at least the id and what it knows.
    """
    try:
        from usb_proxy.catalogue import ENTRIES  # noqa: PLC0415

        text = ENTRIES[id][0].format_map(fields)
    except Exception:
        text = ", ".join(f"{name} {value}" for name, value in fields.items())
    return text if "[UP-" in str(fields.get("quoted")) else f"{text} [{id}]".lstrip()


class UsbProxyError(Exception):
    """A failure that the user is told of, by its id in the catalogue and the fields of that.

    `aside` is what nobody but this qube's own journal is told: what the exporter says reaches
    another qube.
    """

    code = ExitCode.INTERNAL
    aside = ""

    def __init__(self, id: str, /, **fields: object) -> None:
        super().__init__(id)
        self.id = id
        self.fields = fields

    def __str__(self) -> str:
        return sentence(self.id, **self.fields)


class RequestError(UsbProxyError):
    """The request is malformed or asks for something that is never done."""

    code = ExitCode.REQUEST


class NoDeviceError(UsbProxyError):
    """The device is not plugged in, or went away meanwhile."""

    code = ExitCode.NO_DEVICE


class InUseError(UsbProxyError):
    """The device or the resource it needs is taken."""

    code = ExitCode.IN_USE


class NotAttachedError(UsbProxyError):
    """There is no such attachment."""

    code = ExitCode.NOT_ATTACHED


class PeerError(UsbProxyError):
    """The other qube did not do its part."""

    code = ExitCode.PEER


class SystemLackError(UsbProxyError):
    """Something that this qube's system should offer is missing or refuses."""

    code = ExitCode.SYSTEM


class StoppedError(UsbProxyError):
    """SIGTERM, SIGINT or SIGHUP arrived while waiting."""

    code = ExitCode.STOPPED


def history(error: BaseException) -> list[BaseException]:
    """An exception and what went before it: first what went wrong, then in cleaning up."""
    chain = [error]
    while (earlier := chain[0].__context__) is not None:
        chain.insert(0, earlier)
    return chain


def in_words(sentences: Iterable[object]) -> str:
    """All sentences in one line, each once."""
    return "; then: ".join(dict.fromkeys(map(str, sentences)))


def reason(error: OSError) -> str:
    """The kernel's answer in words, without the file name that `str(error)` adds."""
    return error.strerror or f"error {error.errno}"


def printable(untrusted_text: bytes, limit: int = 600) -> str:
    """Text of another qube, made safe to show: printable ASCII in one line, `limit` characters.

    A long one loses its middle: at its end is the id of the sentence.
    """
    shown = "".join(chr(c) if 32 <= c < 127 else " " for c in untrusted_text[: 4 * limit])
    text = " ".join(shown.split())
    end = limit // 20
    return text if len(text) <= limit else f"{text[: limit - 3 - end]}...{text[len(text) - end :]}"


def account(error: BaseException) -> tuple[int, str]:
    """The exit code of whatever was raised, and all that went wrong in one line."""
    chain = history(error)
    # An OSError in the middle has become the sentence that follows it.
    told = [e for e in chain if isinstance(e, UsbProxyError)]
    told = told or [failure for e in chain[:1] if (failure := lack(e))]
    sentences: list[object] = [*told]
    is_defect = not told or not isinstance(chain[0], UsbProxyError | OSError | MemoryError)
    if is_defect:
        sentences.insert(0, _defect(chain[0]))
    return ExitCode.INTERNAL if is_defect else told[0].code, in_words(sentences)


def lack(error: BaseException) -> SystemLackError | None:
    """The sentence for what the kernel says; None where that is a defect of ours.

    An FD that is not open was closed by ourselves.
    """
    if isinstance(error, MemoryError):
        return SystemLackError("UP-723", reason="Cannot allocate memory")
    if not isinstance(error, OSError) or error.errno == errno.EBADF:
        return None
    if error.errno in SHORTAGES:
        return SystemLackError("UP-723", reason=reason(error))
    path = printable(str(error.filename or "what it needs").encode("ascii", "replace"), 200)
    return SystemLackError("UP-760", path=path, reason=reason(error))


def _defect(error: BaseException) -> str:
    """What to tell of an exception that is none of ours."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place else "?"
    return sentence(
        "UP-101", error=printable(repr(error).encode(errors="replace"), 300), place=where
    )
