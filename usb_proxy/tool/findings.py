# SPDX-License-Identifier: GPL-2.0-or-later
"""What a check of the doctor's finds, and what several checks ask."""

from __future__ import annotations

import errno

from usb_proxy.sysfs import DEVICES, VIRTUAL_CONTROLLER

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

APT_CACHE = ("apt-cache", "-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache=")
"""Which writes nothing, also as root."""

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


def text(host: Host, path: str) -> str:
    """What a file says, also by a link; nothing where it is no file or is gone."""
    try:
        return "".join(host.read_lines(path))
    except OSError as failure:
        if failure.errno in (errno.ENOENT, errno.EISDIR, errno.ELOOP):
            return ""
        raise


def package_of_modules(host: Host, release: str) -> str | None:
    """The command that brings a kernel's other modules; None where the kernel is dom0's."""
    if not host.exists(f"/boot/vmlinuz-{release}"):
        return None
    if not is_debian(host):
        arch = host.exists("/etc/arch-release")
        return (
            "pacman -S --noconfirm linux"
            if arch
            else f"dnf install -y kernel-modules-extra-{release}"
        )
    for package in (f"linux-modules-extra-{release}", f"linux-modules-{release}"):
        if host.find_command("apt-cache") and host.run([*APT_CACHE, "show", package])[0] == 0:
            return f"apt-get install -y --reinstall {package}"
    return f"apt-get install -y --reinstall linux-image-{release}"


def program(host: Host, check: str, path: str) -> Finding | None:
    """What is wrong with a program that has to be there."""
    try:
        mode = host.details(path, follows=True).st_mode
    except FileNotFoundError:
        return error(check, f"{path} is not installed", reinstall(host))
    if mode & 0o111 != 0o111:
        return error(check, f"{path} is not executable", f"chmod 0755 {path}")
    return None


def controllers(host: Host) -> list[str]:
    """The buses of this qube that are no virtual ones: who has any is a backend."""
    return [
        name
        for name in host.listing(DEVICES)
        if name.startswith("usb") and VIRTUAL_CONTROLLER not in host.read_link(f"{DEVICES}/{name}")
    ]
