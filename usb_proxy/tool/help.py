# SPDX-License-Identifier: GPL-2.0-or-later
"""What `qubes-usb-proxy help` shows; qubes-usb-proxy(8) has the same sentences, and more."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

ABOUT = "USB devices of one qube in another"

SYNOPSIS = {
    "status": "qubes-usb-proxy status [--json] [--watch]",
    "doctor": "qubes-usb-proxy doctor [--json]",
    "detach": "qubes-usb-proxy detach DEVICE",
    "repair": "qubes-usb-proxy repair",
    "help": "qubes-usb-proxy help [COMMAND]",
}

COMMANDS = {
    "status": "Shows the devices of this qube and which qubes have them, the devices that came "
    "from other qubes, and what dead processes have left. Every user may run it.",
    "doctor": "Looks at each thing that an attach needs, and names the command that repairs what "
    "is wrong. It changes nothing. Every user may run it; root sees more.",
    "detach": "Ends the attachment of a device. DEVICE is a bus id such as 2-1 in the qube where "
    "it is plugged in, and QUBE:DEVICE such as sys-usb:2-1 in the qube that it is attached to. "
    "Who is not root is asked for the administrator's password by polkit.",
    "repair": "Cleans up what dead processes have left. "
    "Who is not root is asked for the administrator's password by polkit.",
}

OPTIONS = {
    "--json": "Writes JSON for programs.",
    "--watch": "Goes on, and shows the state again after each change, until it is stopped.",
}

EXITS = {
    0: "Done; of doctor: all is well.",
    1: "A defect of this program.",
    2: "The command line is wrong.",
    5: "The device is not attached.",
    7: "This qube lacks something, root's rights for example; of doctor: an attach will fail.",
    8: "A signal ended it before it was done.",
    9: "Of doctor: all that an attach needs is there, but something should be looked at.",
}

WIDTH = 80


def text(commands: Sequence[str]) -> str:
    """The help about one command, or about all."""
    shown = commands[:1] or list(COMMANDS)
    lines = [*(SYNOPSIS[name] for name in shown), *([] if commands else [SYNOPSIS["help"]]), ""]
    for name in shown:
        lines += [f"{name}:", *_wrap(COMMANDS[name]), ""]
    options = [o for o in OPTIONS if any(o in SYNOPSIS[name] for name in shown)]
    for option in options:
        lines += [f"{option}:", *_wrap(OPTIONS[option]), ""]
    if not commands:
        lines += ["Exit codes:", *(f"  {code}  {what}" for code, what in EXITS.items())]
    else:
        lines.append("'man qubes-usb-proxy' tells more.")
    return "\n".join(lines) + "\n"


def _wrap(sentences: str) -> list[str]:
    """Lines of at most `WIDTH` characters, indented."""
    lines = [""]
    for word in sentences.split():
        if len(lines[-1]) + len(word) + 3 > WIDTH:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else f"  {word}"
    return lines
