# SPDX-License-Identifier: GPL-2.0-or-later
"""doctor: looks at what an attach needs, in the order in which it is needed."""

from __future__ import annotations

from usb_proxy.errors import ExitCode, UsbProxyError, printable, reason
from usb_proxy.kernel import VHCI_DRIVER
from usb_proxy.tool import drivers, files, findings, system
from usb_proxy.tool.screen import Screen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from usb_proxy.host import Host
    from usb_proxy.tool.findings import Check, Finding

VERSION = 1
"""Of the JSON, see `overview.VERSION`."""

BEFORE: tuple[Check, ...] = (system.qrexec, system.sysfs, system.run_qubes, files.services)
BACKEND: tuple[Check, ...] = (
    files.rpc_config,
    drivers.exporter_module,
    drivers.buses,
    drivers.slots,
    drivers.usbguard,
    files.udev_rules,
    drivers.qubesdb,
)
FRONTEND: tuple[Check, ...] = (drivers.importer_module, drivers.virtual_buses, drivers.ports)
AFTER: tuple[Check, ...] = (
    system.lock_folder,
    system.leftovers,
    files.suspend_hook,
)

MARKS = {findings.OK: "+", findings.WARNING: "!", findings.ERROR: "x"}

CODES = {
    findings.OK: ExitCode.OK,
    findings.WARNING: ExitCode.WARNING,
    findings.ERROR: ExitCode.SYSTEM,
}


def main(options: Collection[str], _names: object, host: Host) -> int:
    """Show what was found: the exit code of the worst."""
    screen = Screen(host)
    found = list(examine(host))
    if "--json" in options:
        screen.write_json({"version": VERSION, "findings": found})
    else:
        for finding in found:
            text = printable(finding["text"].encode("ascii", "replace"))
            repair = f"\n  run: {finding['repair']}" if finding["repair"] else ""
            screen.write(f"{MARKS[finding['level']]} {text}{repair}\n")
    return CODES[max((finding["level"] for finding in found), key=findings.LEVELS.index)]


def examine(host: Host) -> Iterator[Finding]:
    """Everything that is found on the side, or sides, of this qube."""
    try:
        is_backend = bool(findings.controllers(host))
    except OSError as failure:
        yield _failure(findings.controllers, failure, host)
        is_backend = False
    sides = BACKEND if is_backend else ()
    if not is_backend or host.exists(VHCI_DRIVER):
        sides += FRONTEND
    for check in (*BEFORE, *sides, *AFTER):
        try:
            yield from check(host)
        except (OSError, ValueError, UsbProxyError) as failure:
            yield _failure(check, failure, host)


def _failure(check: Callable[[Host], object], failure: Exception, host: Host) -> Finding:
    """What to tell of a check that came to no end."""
    name = check.__name__.replace("_", " ")
    if isinstance(failure, UsbProxyError):
        return findings.error(name, str(failure), None)
    if not isinstance(failure, OSError):
        return findings.error(name, f"cannot read what the kernel says: {failure}", None)
    text = f"cannot look at {failure.filename or name}: {reason(failure)}"
    if isinstance(failure, PermissionError) and not host.is_root():
        return findings.warning(name, text, findings.AS_ROOT)
    return findings.error(name, text, findings.reinstall(host))
