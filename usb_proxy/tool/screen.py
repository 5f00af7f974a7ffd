# SPDX-License-Identifier: GPL-2.0-or-later
"""Standard output, for people and for programs."""

from __future__ import annotations

from usb_proxy.errors import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from usb_proxy.host import Host

GAP = "  "
CUT = "..."
NARROWEST = 8
"""Characters that a column keeps while others can still give some."""


class OutputGoneError(Exception):
    """Nobody reads the output any more: not worth a sentence."""


class Screen:
    """Where the output goes: `width` is that of the terminal, or None without one."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._has_written = False
        self.width = host.width()

    def write(self, text: str) -> None:
        """Write a text of whole lines; OutputGoneError when nobody reads it."""
        self._has_written = True
        rest = text.encode("ascii", "replace")
        while rest:
            try:
                rest = rest[self._host.write_open(self._host.output, rest) :]
            except OSError as error:
                raise OutputGoneError from error

    def write_json(self, value: object) -> None:
        """Write a value as a line of JSON."""
        import json  # noqa: PLC0415 (it doubles the time of a start)

        self.write(json.dumps(value) + "\n")

    def begin(self) -> None:
        """Begin anew: on a terminal in its upper left corner (ECMA-48), else after a line."""
        self.write("\033[H\033[2J" if self.width is not None else "\n" if self._has_written else "")

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
        if self.width is not None:
            lines[0] = f"\033[1m{lines[0]}\033[0m"
        return "\n".join(lines) + "\n"


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = (
        text if len(text) <= width else text[: width - len(CUT)] + CUT
        for text, width in zip(row, widths, strict=True)
    )
    padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return GAP.join(padded).rstrip()
