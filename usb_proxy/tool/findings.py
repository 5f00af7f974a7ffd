# SPDX-License-Identifier: GPL-2.0-or-later
"""What a check of the doctor's finds, and what several checks ask."""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypedDict

    from usb_proxy.host import Host

    class Finding(TypedDict):
        """`level` is one of `LEVELS`; `repair` is a command for root's shell, or None."""

        check: str
        level: str
        text: str
        repair: str | None

    Check = Callable[[Host], Iterator[Finding]]

PACKAGE = "qubes-usb-proxy"

OK, WARNING, ERROR = "ok", "warning", "error"
LEVELS = (OK, WARNING, ERROR)

AS_ROOT = f"sudo {PACKAGE} doctor"


def ok(check: str, text: str) -> Finding:
    """It is as it should be."""
    return {"check": check, "level": OK, "text": text, "repair": None}


def warning(check: str, text: str, repair: str | None) -> Finding:
    """An attach may do without it, or it could not be looked at."""
    return {"check": check, "level": WARNING, "text": text, "repair": repair}


def error(check: str, text: str, repair: str | None) -> Finding:
    """An attach, or what comes with it, will fail."""
    return {"check": check, "level": ERROR, "text": text, "repair": repair}


def reinstall(host: Host, package: str = PACKAGE) -> str:
    """The command that brings back all files of a package of this distribution."""
    if is_debian(host):
        # Files below /etc that somebody removed come back only if that is asked for (dpkg(1)).
        return f"apt-get install -y --reinstall -o Dpkg::Options::=--force-confmiss {package}"
    if host.exists("/etc/arch-release"):
        return f"pacman -S --noconfirm {package}"
    return f"dnf reinstall -y {package}"


def is_debian(host: Host) -> bool:
    """Whether this is Debian, or made from it."""
    return host.exists("/etc/debian_version")


def program(host: Host, check: str, path: str) -> Finding | None:
    """What is wrong with a program that has to be there."""
    try:
        mode = os.stat(host.root + path).st_mode
    except FileNotFoundError:
        return error(check, f"{path} is not installed", reinstall(host))
    if mode & 0o111 != 0o111:
        return error(check, f"{path} is not executable", f"chmod 0755 {path}")
    return None


def is_open_to(state: os.stat_result, bits: int) -> bool:
    """Whether a file of root's gives somebody else one of these rights."""
    return bool(stat.S_IMODE(state.st_mode) & bits)


def has_controllers(host: Host) -> bool:
    """Whether this qube has USB controllers of its own, and so is a backend."""
    return bool(controllers(host))


def controllers(host: Host) -> list[str]:
    """The buses of this qube that are no virtual ones."""
    folder = "/sys/bus/usb/devices"
    return [
        name
        for name in host.listing(folder)
        if name.startswith("usb")
        and "/vhci_hcd." not in os.path.realpath(f"{host.root}{folder}/{name}")
    ]
