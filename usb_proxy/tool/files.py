# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks of what the package installs."""

from __future__ import annotations

from usb_proxy.errors import printable
from usb_proxy.tool import findings
from usb_proxy.tool.findings import error, ok, warning

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from usb_proxy.host import Host
    from usb_proxy.tool.findings import Finding

PRIVATE = "/usr/lib/qubes/usb-proxy"
PROGRAMS = (
    f"{PRIVATE}/launch",
    *(f"/usr/lib/qubes/usb-{name}" for name in ("detach-all", "export", "import", "reset")),
)
SERVICES = tuple(f"/etc/qubes-rpc/qubes.USB{name}" for name in ("", "Attach", "Detach"))
RPC_CONFIG = "/etc/qubes/rpc-config/qubes.USB"
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
        text = f"{RPC_CONFIG} is missing or names no user, so the exporter may not run as root"
        if values:
            user = printable(values[0].encode("ascii", "replace"), 40)
            text = f"{RPC_CONFIG} says to start the exporter as {user} instead of root"
        yield error("rpc-config", text, repair)


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
        is_right = host.read_link(SUSPEND_HOOK) == target
    except OSError:
        # A user's own program may stand there; the link's absence is what matters.
        is_right = host.is_executable(SUSPEND_HOOK)
    if is_right:
        yield ok("suspend", "devices are detached before suspend")
    else:
        text = "devices are not detached before suspend, and may hang after it"
        yield warning("suspend", text, f"ln -sfn {target} {SUSPEND_HOOK}")
