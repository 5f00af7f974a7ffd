# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks of what the package installs."""

from __future__ import annotations

import os
import sys

from usb_proxy.errors import printable
from usb_proxy.tool import findings
from usb_proxy.tool.findings import error, ok, warning

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from usb_proxy.host import Host
    from usb_proxy.tool.findings import Finding

PRIVATE = "/usr/lib/qubes-usb-proxy"
PROGRAMS = (
    f"{PRIVATE}/launch",
    *(f"/usr/lib/qubes/usb-{name}" for name in ("detach-all", "export", "import", "reset")),
)
SERVICES = tuple(f"/etc/qubes-rpc/qubes.USB{name}" for name in ("", "Attach", "Detach"))
RPC_CONFIG = "/etc/qubes/rpc-config/qubes.USB"
SUDOERS = "/etc/sudoers.d/qubes-usb-proxy"
UDEV_RULES = "/usr/lib/udev/rules.d/80-qubes-usb-reset.rules"
SUSPEND_HOOK = "/etc/qubes/suspend-pre.d/usb-detach-all.sh"


def services(host: Host) -> Iterator[Finding]:
    """The programs that qrexec and this package start."""
    found = [findings.program(host, "services", path) for path in (*SERVICES, *PROGRAMS)]
    wrong = [finding for finding in found if finding]
    yield from wrong
    if not wrong:
        yield ok("services", "the services and programs are installed and executable")


def rpc_config(host: Host) -> Iterator[Finding]:
    """Whether qrexec starts the exporter as root."""
    repair = f"printf \"force-user='root'\\n\" > {RPC_CONFIG}"
    try:
        lines = [line.partition("#")[0].strip() for line in host.read(RPC_CONFIG).splitlines()]
    except FileNotFoundError:
        lines = []
    values = [line.partition("=")[2].strip("'\"") for line in lines if "force-user" in line]
    if values == ["root"]:
        yield ok("rpc-config", "qrexec starts the exporter as root")
    else:
        said = printable(values[0].encode("ascii", "replace"), 40) if values else "nobody"
        text = f"{RPC_CONFIG} says to start the exporter as {said} instead of root"
        if host.find_command("sudo") and host.exists(SUDOERS):
            yield warning("rpc-config", f"{text}; sudo has to stand in", repair)
        else:
            yield error("rpc-config", text, repair)


def sudoers(host: Host) -> Iterator[Finding]:
    """What stands in for rpc-config where that was changed."""
    if host.find_command("sudo") is None:
        return
    try:
        state = os.lstat(host.root + SUDOERS)
    except PermissionError:
        yield warning("sudoers", f"only root can see {SUDOERS}", findings.AS_ROOT)
        return
    except FileNotFoundError:
        yield warning("sudoers", f"{SUDOERS} is missing", findings.reinstall(host))
        return
    if state.st_uid != 0 or findings.is_open_to(state, 0o022):
        repair = f"chown root:root {SUDOERS} && chmod 0440 {SUDOERS}"
        yield error("sudoers", f"others than root may write {SUDOERS}, so sudo ignores it", repair)
    else:
        yield ok("sudoers", "sudo may stand in for rpc-config")


def udev_rules(host: Host) -> Iterator[Finding]:
    """The rules that say which devices need a reset."""
    override = UDEV_RULES.replace("/usr/lib", "/etc")
    if not host.exists(UDEV_RULES):
        text = f"{UDEV_RULES} is missing, so devices that need a reset do not get it"
        yield warning("udev rules", text, findings.reinstall(host))
    elif host.exists(override):
        text = f"{override} replaces the rules for devices that need a reset"
        yield warning("udev rules", text, f"rm {override} && udevadm control --reload")
    else:
        yield ok("udev rules", "the rules for devices that need a reset are installed")


def suspend_hook(host: Host) -> Iterator[Finding]:
    """What detaches everything before suspend."""
    target = "/usr/lib/qubes/usb-detach-all"
    try:
        is_right = os.readlink(host.root + SUSPEND_HOOK) == target
    except OSError:
        # A user's own program may stand there; the link's absence is what matters.
        is_right = os.access(host.root + SUSPEND_HOOK, os.X_OK)
    if is_right:
        yield ok("suspend", "devices are detached before suspend")
    else:
        text = "devices are not detached before suspend, and may hang after it"
        yield warning("suspend", text, f"ln -sfn {target} {SUSPEND_HOOK}")


def byte_code(host: Host) -> Iterator[Finding]:
    """Whether Python finds its byte code, or compiles the program at each start.

    The header is magic number, flags, time and size of the source (PEP 552).
    """
    stale = 0
    for folder, _, names in os.walk(f"{host.root}{PRIVATE}/usb_proxy"):
        for name in names:
            if name.endswith(".py"):
                code = f"{folder}/__pycache__/{name[:-3]}.{sys.implementation.cache_tag}.pyc"
                stale += not _is_fresh(f"{folder}/{name}", code)
    if stale:
        text = f"{stale} modules have no fresh byte code, so each start takes longer"
        repair = f"/usr/bin/python3 -m compileall -q {PRIVATE}/usb_proxy"
        yield warning("byte code", text, repair)
    else:
        yield ok("byte code", "the byte code is fresh")


def _is_fresh(source: str, code: str) -> bool:
    state = os.stat(source)
    try:
        with open(code, "rb") as file:
            header = file.read(16)
    except OSError:
        return False
    expected = (int(state.st_mtime) & 0xFFFFFFFF, state.st_size & 0xFFFFFFFF)
    stamps = (int.from_bytes(header[8:12], "little"), int.from_bytes(header[12:], "little"))
    return len(header) == 16 and stamps == expected
