# SPDX-License-Identifier: GPL-2.0-or-later
"""What `qubes-usb-proxy help` shows; qubes-usb-proxy(8) has the same sentences, and more."""

from __future__ import annotations

from textwrap import TextWrapper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

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
    "doctor": "Checks everything that an attach needs, and names the command that repairs each "
    "problem. It changes nothing. Every user may run it; root sees more.",
    "detach": "Ends the attachment of a device. DEVICE is a bus id such as 2-1 in the qube where "
    "it is plugged in, and QUBE:DEVICE such as sys-usb:2-1 in the qube that it is attached to. "
    "polkit asks a user who is not root for the administrator's password.",
    "repair": "Cleans up what dead processes have left. "
    "polkit asks a user who is not root for the administrator's password.",
}

OPTIONS = {
    "--json": "Writes JSON for programs.",
    "--watch": "Keeps running, and shows the state again after each change, until it is stopped.",
}

EXITS = {
    0: "Done. From doctor: all is well.",
    1: "A defect of this program.",
    2: "The command line is wrong.",
    5: "The device is not attached.",
    7: "This qube lacks something, such as root's rights. From doctor: an attach will fail.",
    8: "A signal ended it before it was done.",
    9: "From doctor: an attach has what it needs, but something should be looked at.",
}

WRAPPER = TextWrapper(78, "  ", "  ", break_on_hyphens=False)


def text(commands: Sequence[str]) -> str:
    """The help about one command, or about all."""
    shown = commands[:1] or list(COMMANDS)
    lines = [*(SYNOPSIS[name] for name in shown), *([] if commands else [SYNOPSIS["help"]]), ""]
    for name in shown:
        lines += [f"{name}:", *WRAPPER.wrap(COMMANDS[name]), ""]
    options = [o for o in OPTIONS if any(o in SYNOPSIS[name] for name in shown)]
    for option in options:
        lines += [f"{option}:", *WRAPPER.wrap(OPTIONS[option]), ""]
    if not commands:
        lines += ["Exit codes:", *(f"  {code}  {what}" for code, what in EXITS.items())]
    else:
        lines.append("'man qubes-usb-proxy' says more.")
    return "\n".join(lines) + "\n"
