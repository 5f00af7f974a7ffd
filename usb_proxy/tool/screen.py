# SPDX-License-Identifier: GPL-2.0-or-later
"""Standard output, for people and for programs."""

from __future__ import annotations

import os

from usb_proxy.errors import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from usb_proxy.host import Host

GAP = "  "
CUT = "..."
NARROWEST = 8
"""Characters that a column keeps while others can still give some."""


OF_PYTHON = ("C.UTF-8", "C.utf8", "UTF-8")
"""What Python itself sets LC_CTYPE to where the locale is C (PEP 538)."""


class OutputGoneError(Exception):
    """Nobody reads the output any more: not worth a sentence."""


class Screen:
    """Where the output goes: `width` is that of the terminal, or None without one.

    Only in UTF-8 may there be other characters than ASCII (the locale's variables, locale(7)).
    """

    def __init__(self, host: Host) -> None:
        self._fd = host.output
        self._has_written = False
        self.width: int | None = None
        try:
            self.width = os.get_terminal_size(self._fd).columns or None
        except OSError:
            pass
        names = [host.environment.get(name, "") for name in ("LC_ALL", "LC_CTYPE", "LANG")]
        if names[1] in OF_PYTHON:
            names[1] = ""
        locale = next(filter(None, names), "").lower()
        self.is_utf8 = locale.endswith(("utf-8", "utf8"))

    def write(self, text: str) -> None:
        """Write a text of whole lines; OutputGoneError when nobody reads it."""
        self._has_written = True
        rest = text.encode("utf-8" if self.is_utf8 else "ascii", "replace")
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except OSError as error:
                raise OutputGoneError from error

    def write_json(self, value: object) -> None:
        """Write dictionaries, lists, texts of printable ASCII, numbers and None as a line of JSON.

        The module json, which can do more, doubles the time of a start.
        """
        self.write(_json_of(value) + "\n")

    def begin(self) -> None:
        """Begin anew: on a terminal in its upper left corner (ECMA-48), else after a line."""
        self.write("\033[H\033[2J" if self.width is not None else "\n" if self._has_written else "")

    def heading(self, text: str) -> str:
        """A line that stands out on a terminal."""
        return text if self.width is None else f"\033[1m{text[: self.width]}\033[0m"

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
        """Lines with aligned columns, no wider than the terminal; texts are made safe to show.

        The widest column is cut first.
        """
        safe = [[printable(text.encode("ascii", "replace")) for text in row] for row in rows]
        widths = [max(len(row[n]) for row in [head, *safe]) for n in range(len(head))]
        if self.width is not None:
            while sum(widths) + len(GAP) * (len(head) - 1) > self.width:
                widest = widths.index(max(widths))
                if widths[widest] <= NARROWEST:
                    break  # The line is cut instead.
                widths[widest] -= 1
        lines = [_line(row, widths)[: self.width] for row in [head, *safe]]
        return "\n".join([self.heading(lines[0]), *lines[1:]]) + "\n"


def _json_of(value: object) -> str:
    if isinstance(value, dict):
        members = (f"{_json_of(name)}: {_json_of(inner)}" for name, inner in value.items())
        return f"{{{', '.join(members)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_json_of, value))}]"
    if isinstance(value, str):
        safe = "".join(char if " " <= char <= "~" else "?" for char in value)
        escaped = safe.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return "null" if value is None else str(value)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = (
        text if len(text) <= width else text[: width - len(CUT)] + CUT
        for text, width in zip(row, widths, strict=True)
    )
    padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return GAP.join(padded).rstrip()
