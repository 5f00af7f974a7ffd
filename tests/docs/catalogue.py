# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes docs/troubleshooting.md and its man page from the catalogue: `make errors`."""

import re
import textwrap
from pathlib import Path

from usb_proxy.catalogue import ENTRIES

TOP = Path(__file__).parents[2]

GROUPS = {
    "1": "Defects",
    "2": "Requests that cannot be fulfilled",
    "3": "The device is not there",
    "4": "The device, or what it needs, is taken",
    "5": "The device is not attached",
    "6": "The other qube",
    "7": "This qube",
    "8": "Programs that were ended",
    "9": "In dom0",
}
"""By the first digit of an id: the exit code, and 9 for dom0's extension, which has none."""

INTRODUCTION = """\
Each failure is one sentence that ends with an id, such as `[UP-301]`. This page lists them all:
what each says, its possible causes, and what helps. Words in capitals stand for the names and
numbers of your case. The first digit is the exit code of the program; `UP-9` comes from dom0.

A sentence with several ids says first what failed first, and then what else failed. When one qube
quotes another (`sys-usb says: ...`), the id belongs to the quoted sentence.
"""

MARKDOWN_HEAD = f"""\
<!-- SPDX-License-Identifier: GPL-2.0-or-later -->
<!-- Written by `make errors` from usb_proxy/catalogue: change that. -->
# Troubleshooting

{INTRODUCTION}
In a qube, `man qubes-usb-proxy-errors` shows the same.
"""

MAN_HEAD = r"""
.\" SPDX-License-Identifier: GPL-2.0-or-later
.\" Written by `make errors` from usb_proxy/catalogue: change that.
.Dd November 26, 2026
.Dt QUBES-USB-PROXY-ERRORS 7
.Os
.Sh NAME
.Nm qubes-usb-proxy-errors
.Nd what went wrong with a USB device, and what to do about it
.Sh DESCRIPTION
"""

MAN_END = """\
.Sh SEE ALSO
.Xr qubes-usb-proxy 7
"""


def words(template: str) -> str:
    """A sentence as it is listed: the fields are words in capitals."""
    return re.sub(r"\{(\w+)[^}]*\}", lambda field: field[1].upper(), template)


def filled(text: str, width: int = 100, indent: str = "") -> str:
    """Text in lines of a width, all but the first indented; a command stays in one line."""
    whole = re.sub(r"`[^`]*`", lambda command: command[0].replace(" ", "\0"), text)
    lines = textwrap.fill(
        whole, width, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )
    return lines.replace("\0", " ")


def markdown() -> str:
    """The page for the web."""
    parts = [MARKDOWN_HEAD]
    group = ""
    for name, (template, causes, remedy) in ENTRIES.items():
        if name[3] != group:
            group = name[3]
            parts.append(f"\n## {GROUPS[group]}\n")
        quoted = filled(words(template), 98).replace("\n", "\n> ").replace("_", r"\_")
        parts.append(f"\n### {name}\n\n> {quoted}\n\n")
        parts += [f"{filled(f'- {cause}', indent='  ')}\n" for cause in causes]
        parts.append(f"\n{filled(f'**What to do:** {remedy}')}\n")
    return "".join(parts)


def roff(text: str) -> str:
    """Markdown as lines of mdoc(7), a new line for each sentence."""
    lines = []
    for paragraph in re.split(r"(?<=[.:]) (?=[A-Z`])", " ".join(text.split())):
        lines += textwrap.wrap(paragraph, 66, break_on_hyphens=False, break_long_words=False)
    shown = "\n".join(lines).replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq")
    shown = re.sub(r"`([^`]*)`", r"\\fB\1\\fP", shown)
    return re.sub(r"^\.", r"\\&.", shown, flags=re.MULTILINE)


def man() -> str:
    """The page for a qube."""
    paragraphs = [roff(text) for text in INTRODUCTION.split("\n\n")]
    parts = [MAN_HEAD.lstrip(), "\n.Pp\n".join(paragraphs), "\n"]
    group = ""
    for name, (template, causes, remedy) in ENTRIES.items():
        if name[3] != group:
            parts.append(".El\n" if group else "")
            group = name[3]
            parts.append(f".Ss {GROUPS[group]}\n.Bl -tag -width 6n\n")
        parts.append(f".It {roff(name)}\n\\fI{roff(words(template))}\\fP\n")
        items = "".join(f".It\n{roff(cause)}\n" for cause in causes)
        parts.append(f".Bl -bullet -compact\n{items}.El\n.Pp\n{roff(remedy)}\n")
    return "".join([*parts, ".El\n", MAN_END])


PAGES = {"docs/troubleshooting.md": markdown, "man/qubes-usb-proxy-errors.7": man}


if __name__ == "__main__":
    for path, page in PAGES.items():
        (TOP / path).write_text(page())
