# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks of the platform in either kind of qube: Qubes' own services, and what the dead left."""

from __future__ import annotations

import stat

from usb_proxy import locks
from usb_proxy.frontend import records
from usb_proxy.kernel import VHCI_DRIVER
from usb_proxy.tool import findings, overview
from usb_proxy.tool.findings import error, ok, warning

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from usb_proxy.host import Host
    from usb_proxy.tool.findings import Finding

GROUP = "qubes"


def qrexec(host: Host) -> Iterator[Finding]:
    """Calls between qubes."""
    if host.find_command("qrexec-client-vm"):
        yield ok("qrexec", "qrexec is installed")
    else:
        package = "qubes-vm-qrexec" if host.exists("/etc/arch-release") else "qubes-core-qrexec"
        text = "qrexec-client-vm is not installed, so this qube cannot call another"
        yield error("qrexec", text, findings.reinstall(host, package))


def sysfs(host: Host) -> Iterator[Finding]:
    """The kernel's files, through which all is done."""
    if host.is_read_only("/sys"):
        yield error("/sys", "this qube's /sys is read-only", "mount -o remount,rw /sys")


def run_qubes(host: Host) -> Iterator[Finding]:
    """The folder of records, which is of the group `qubes` (qubes-core-qrexec, qrexec.conf)."""
    path = records.FOLDER
    repair = f"install -d -o root -g {GROUP} -m 2770 {path}"
    group = _group(host)
    if group is None:
        yield error("/run/qubes", f"there is no group {GROUP}", f"groupadd -r {GROUP} && {repair}")
        return
    try:
        state = host.details(path)
    except FileNotFoundError:
        yield error("/run/qubes", f"{path} is missing", repair)
        return
    if not stat.S_ISDIR(state.st_mode):
        yield error("/run/qubes", f"{path} is not a folder", f"rm {path} && {repair}")
    elif state.st_uid != 0:
        yield error("/run/qubes", f"{path} does not belong to root", repair)
    elif state.st_mode & 0o002 or (state.st_mode & 0o020 and state.st_gid not in (0, group)):
        text = f"users outside the group {GROUP} may write to {path}"
        yield error("/run/qubes", text, repair)
    else:
        yield ok("/run/qubes", f"{path} belongs to root and the group {GROUP}")


def _group(host: Host) -> int | None:
    """The number of the group `qubes`, group(5); None if there is none."""
    for line in host.read_lines("/etc/group"):
        name, _, rest = line.partition(":")
        if name == GROUP:
            return int(rest.split(":")[1])
    return None


def lock_folder(host: Host) -> Iterator[Finding]:
    """Root's own folder: readable, but no lock may be opened by somebody else."""
    path = locks.LOCKS
    if not host.exists(path):
        yield ok("locks", "nothing has been attached since this qube started")
        return
    state = host.details(path)
    if (state.st_uid, stat.S_IMODE(state.st_mode)) != (0, 0o755):
        text = f"{path} does not belong to root, or its mode is not 0755"
        yield error("locks", text, f"chown root:root {path} && chmod 0755 {path}")
        return
    open_to_others = []
    for name in host.listing(path):
        try:
            if name.endswith(".lock") and host.details(f"{path}/{name}").st_mode & 0o077:
                open_to_others.append(name)
        except FileNotFoundError:
            continue  # It was given up just now.
    if open_to_others:
        text = f"users other than root can open {open_to_others[0]}, and so block attaches"
        yield error("locks", text, f"chmod 0600 {path}/*.lock")
    else:
        yield ok("locks", "only root may open the locks")


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
            repair = f"echo {port['port']} > {VHCI_DRIVER}/detach"
            if port["backend"] and port["device"]:
                repair = f"{findings.PACKAGE} detach {port['backend']}:{port['device']}"
            yield warning("leftovers", text, repair)
    if not state["leftovers"]:
        yield ok("leftovers", "no dead process has left anything behind")
