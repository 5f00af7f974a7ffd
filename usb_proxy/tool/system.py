# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks of the platform in either kind of qube: Qubes' own services, and what the dead left."""

from __future__ import annotations

import os
import stat

from usb_proxy import runstate
from usb_proxy.errors import printable
from usb_proxy.tool import findings, overview
from usb_proxy.tool.findings import error, ok, warning

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from usb_proxy.host import Host
    from usb_proxy.tool.findings import Finding

MARKER = "/usr/share/qubes/marker-vm"
"""Its last line is the release of Qubes OS (qubes-core-agent-linux, misc/marker-vm.in)."""

GROUP = "qubes"


def qrexec(host: Host) -> Iterator[Finding]:
    """Calls between qubes."""
    try:
        lines = [line for line in host.read(MARKER).split() if line[:1].isdigit()]
        version = f"of Qubes OS {printable(lines[-1].encode(), 20)} " if lines else ""
    except OSError:
        version = ""
    if host.find_command("qrexec-client-vm"):
        yield ok("qrexec", f"qrexec {version}is installed")
    else:
        package = "qubes-vm-qrexec" if host.exists("/etc/arch-release") else "qubes-core-qrexec"
        text = "qrexec-client-vm is not installed, so this qube can call no other"
        yield error("qrexec", text, findings.reinstall(host, package))


def run_qubes(host: Host) -> Iterator[Finding]:
    """The folder of records, which is of the group `qubes` (qubes-core-qrexec, qrexec.conf)."""
    path = runstate.RECORDS
    repair = f"install -d -o root -g {GROUP} -m 2770 {path}"
    group = _group(host)
    if group is None:
        yield error("/run/qubes", f"there is no group {GROUP}", f"groupadd -r {GROUP} && {repair}")
        return
    try:
        state = os.lstat(host.root + path)
    except FileNotFoundError:
        yield error("/run/qubes", f"{path} is missing", repair)
        return
    if not stat.S_ISDIR(state.st_mode):
        yield error("/run/qubes", f"{path} is no folder", f"rm {path} && {repair}")
    elif state.st_uid != 0:
        yield error("/run/qubes", f"{path} is not root's", repair)
    elif findings.is_open_to(state, 0o002) or (
        findings.is_open_to(state, 0o020) and state.st_gid not in (0, group)
    ):
        text = f"others than the group {GROUP} may write to {path}"
        yield error("/run/qubes", text, repair)
    else:
        yield ok("/run/qubes", f"{path} is root's and the group {GROUP}'s")


def _group(host: Host) -> int | None:
    """The number of the group `qubes`, group(5); None if there is none."""
    with open(f"{host.root}/etc/group", encoding="utf-8", errors="replace") as file:
        for line in file:
            name, _, rest = line.partition(":")
            if name == GROUP:
                return int(rest.split(":")[1])
    return None


def locks(host: Host) -> Iterator[Finding]:
    """Root's own folder: readable, but no lock may be opened by somebody else."""
    path = runstate.LOCKS
    if not host.exists(path):
        yield ok("locks", "nothing was attached since this qube started")
        return
    state = os.lstat(host.root + path)
    if (state.st_uid, stat.S_IMODE(state.st_mode)) != (0, 0o755):
        text = f"{path} is not root's with mode 0755"
        yield error("locks", text, f"chown root:root {path} && chmod 0755 {path}")
        if not os.access(host.root + path, os.R_OK | os.X_OK):
            return
    open_to_others = []
    for name in runstate.lock_names(host):
        try:
            if findings.is_open_to(os.lstat(f"{host.root}{path}/{name}.lock"), 0o077):
                open_to_others.append(name)
        except FileNotFoundError:
            continue  # It was given up just now.
    if open_to_others:
        text = f"others than root may open {open_to_others[0]}.lock, and block it"
        yield error("locks", text, f"chmod 0600 {path}/*.lock")
    else:
        yield ok("locks", "the locks are root's alone")


def leftovers(host: Host) -> Iterator[Finding]:
    """What dead processes have left, and what others hold."""
    state = overview.overview(host)
    for left in state["leftovers"]:
        device = left["device"]
        if left["role"] == "import":
            device = f"{left['peer']}:{device}"
        text = f"the process in charge of {device} has died and left it attached"
        yield error("leftovers", text, f"{findings.PACKAGE} repair")
    for device_here in state["devices"]:
        if device_here["state"] == overview.FOREIGN:
            name = device_here["device"]
            text = f"another program has exported USB device {name}"
            yield warning("leftovers", text, f"{findings.PACKAGE} detach {name}")
    for port in state["attachments"]:
        if port["state"] == overview.FOREIGN:
            text = f"another program has attached a device to port {port['port']}"
            repair = f"echo {port['port']} > /sys/devices/platform/vhci_hcd.0/detach"
            if port["backend"] and port["device"]:
                repair = f"{findings.PACKAGE} detach {port['backend']}:{port['device']}"
            yield warning("leftovers", text, repair)
    if not state["leftovers"]:
        yield ok("leftovers", "no dead process has left anything")
