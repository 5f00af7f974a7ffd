# SPDX-License-Identifier: GPL-2.0-or-later
"""How the package gets into a qube, as qvm-usb-doctor says it."""

from __future__ import annotations

from typing import Any

INSTALL = {
    "debian": "apt-get -y install",
    "fedora": "dnf -y install",
    "arch": "pacman -S --noconfirm",
}


def template(vm: Any) -> str:
    """The qube that a package has to be installed in, so that `vm` has it."""
    above = getattr(vm, "template", None)
    while above is not None and above.klass == "AppVM":  # the template of a disposable
        above = above.template
    return str(above.name if above is not None else vm.name)


def command(vm: Any) -> str:
    """The command that installs the package, where its template's distribution is known.

    Raises a QubesException where that may not be asked.
    """
    known = vm.features.check_with_template("os-distribution", "")
    like = f"{known} {vm.features.check_with_template('os-distribution-like', '')}".split()
    for name in like:
        if name in INSTALL:
            owner = template(vm)
            there = f"{INSTALL[name]} qubes-usb-proxy"
            start = f"qvm-run -p -u root {owner} '{there}'"
            if owner == vm.name:
                return start
            return f"{start} && qvm-shutdown --wait {owner} {vm.name} && qvm-start {vm.name}"
    return ""
