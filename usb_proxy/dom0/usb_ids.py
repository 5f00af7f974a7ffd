# SPDX-License-Identifier: GPL-2.0-or-later
"""Names of vendors and products from the hwdata package, without keeping them in memory."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

USB_IDS = Path("/usr/share/hwdata/usb.ids")
"""The file that qubes/device_protocol.py reads for the names of interface classes."""

NAME_LIMIT = 200
_NEXT_VENDOR = re.compile(rb"\n[^\t#\n]")
"""Vendor lines start at the margin, product lines with one tab, interfaces with two."""


class UsbIds:
    """A lookup maps the file, searches it as text, and lets go of it again."""

    def __init__(self, path: Path = USB_IDS) -> None:
        self._path = path

    def names(self, vendor: str, product: str) -> tuple[str | None, str | None]:
        """Names of a vendor and its product, both as four lower-case hexadecimal digits.

        None for what is not in the file, and for everything if there is no file.
        """
        try:
            with (
                self._path.open("rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text,
            ):
                start = text.find(f"\n{vendor}  ".encode())
                if start < 0:
                    return None, None
                after = _NEXT_VENDOR.search(text, start + 1)
                end = after.start() if after else len(text)
                line = text.find(f"\n\t{product}  ".encode(), start, end)
                return _rest(text, start + 7), None if line < 0 else _rest(text, line + 8)
        except (OSError, ValueError):  # an empty file cannot be mapped
            return None, None


def _rest(text: mmap.mmap, start: int) -> str:
    """The rest of a line, in what DeviceSerializer.ALLOWED_CHARS_PARAM allows: printable ASCII."""
    end = text.find(b"\n", start)
    line = text[start : end if end >= 0 else len(text)][:NAME_LIMIT].decode(errors="replace")
    return "".join(c if " " <= c <= "~" else "_" for c in line.strip())
