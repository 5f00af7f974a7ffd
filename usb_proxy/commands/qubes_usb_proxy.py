# SPDX-License-Identifier: GPL-2.0-or-later
"""qubes-usb-proxy: what is attached, what is wrong, and cleaning up; for the administrator."""

from __future__ import annotations

from usb_proxy.errors import RequestError, printable
from usb_proxy.tool.screen import OutputGoneError, Screen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from usb_proxy.host import Host

COMMANDS = {
    "status": ({"--json", "--watch"}, 0),
    "doctor": ({"--json"}, 0),
    "detach": (set[str](), 1),
    "repair": (set[str](), 0),
}
"""Each one's options, and how many names follow it; each is a module in usb_proxy.tool."""

HELP = frozenset(("help", "--help", "-h"))


def main(arguments: Sequence[str], host: Host) -> int:
    """Run one of `COMMANDS`, importing no other's module."""
    words = arguments[1:]
    try:
        if not HELP.isdisjoint(words):
            return _help(words, host)
        if not words:
            raise RequestError("UP-225")
        if words[0] not in COMMANDS:
            raise RequestError("UP-226", word=_shown(words[0]))
        options = [word for word in words[1:] if word.startswith("-")]
        names = [word for word in words[1:] if not word.startswith("-")]
        known, count = COMMANDS[words[0]]
        for option in options:
            if option not in known:
                raise RequestError("UP-227", command=words[0], option=_shown(option))
        if len(names) != count:
            what = "takes one device" if count else "takes no name"
            raise RequestError("UP-228", command=words[0], what=what)
        return int(_load(words[0]).main(options, names, host))
    except OutputGoneError:
        return 0


def _help(words: Sequence[str], host: Host) -> int:
    text = _load("help").text([word for word in words if word in COMMANDS])
    Screen(host).write(text)
    return 0


def _load(name: str) -> Any:
    """A module of the tool."""
    return __import__(f"usb_proxy.tool.{name}", fromlist=["main"])


def _shown(untrusted_word: str) -> str:
    return printable(untrusted_word.encode(errors="replace"), 40)
