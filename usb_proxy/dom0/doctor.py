# SPDX-License-Identifier: GPL-2.0-or-later
"""qvm-usb-doctor: why a USB device cannot be attached, seen from dom0 or an admin qube.

It uses the client library, `qubesadmin`, and has no rights but those of whoever starts it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from usb_proxy.dom0 import installing, rules, showing
from usb_proxy.dom0.asking import LEVELS, Finding, NoAnswerError, ask
from usb_proxy.errors import ExitCode, printable
from usb_proxy.idents import STUB_DOMAIN_SUFFIX

VERSION = 1
"""Of the JSON: it grows when a field goes or means something else."""

LEAST_MEMORY = 256
"""MiB; a USB qube of Qubes has 400."""

USB_CONTROLLER = "p0c03"
"""A PCI interface: serial bus, USB (DeviceInterface in qubes/device_protocol.py)."""

UNKNOWN = "NA"
"""The client library's state of a qube whose state it may not see."""

CODES = {"ok": ExitCode.OK, "warning": ExitCode.WARNING, "error": ExitCode.SYSTEM}


def main(arguments: Sequence[str] | None = None) -> int:
    """Examine, and print what was found; gives the exit code of the worst."""
    options = _options(arguments)
    import qubesadmin  # type: ignore[import-not-found]  # noqa: PLC0415 (help needs no Qubes)

    app = qubesadmin.Qubes()
    given = {options.qube, (options.device or "").partition(":")[0]}
    names = [name for name in given - {"dom0"} if name]
    found = sorted(_examine(app, options.qube, options.device, names), key=_badness)
    if options.report:
        found = showing.anonymous(names, found)
    if options.json:
        shown = {"version": VERSION, "findings": [finding._asdict() for finding in found]}
        print(json.dumps(shown, indent=2))
    else:
        print("\n".join(showing.screen(found)))
    return CODES[found[0].level]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="qvm-usb-doctor",
        description="Find out why a USB device cannot be attached. The worst comes first.",
    )
    parser.add_argument("qube", nargs="?", metavar="QUBE", help="the qube that should have it")
    parser.add_argument("device", nargs="?", metavar="BACKEND:PORT", help="as in 'qvm-usb list'")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.add_argument(
        "--report", action="store_true", help="leave out names and serial numbers, for pasting"
    )
    options = parser.parse_args(arguments)
    if options.device and ":" not in options.device:
        parser.exit(ExitCode.REQUEST, "a device is named BACKEND:PORT, as in sys-usb:2-1\n")
    return options


def _badness(finding: Finding) -> int:
    return -LEVELS.index(finding.level)


def _examine(app: Any, qube: str | None, device: str | None, names: list[str]) -> Iterator[Finding]:
    """What `examine` finds until qubesd says no more; `names` gets those of all qubes.

    What the library cannot parse is its ProtocolError, an AssertionError (device_protocol.py).
    """
    from qubesadmin.exc import QubesException  # type: ignore[import-not-found]  # noqa: PLC0415

    try:
        names += [vm.name for vm in app.domains if vm.klass != "AdminVM"]
        yield from examine(app, qube, device)
    except (QubesException, AssertionError) as error:
        text = f"qubesd does not say what has to be known: {_shown(str(error))}"
        yield Finding("dom0", "error", text)


def examine(app: Any, qube: str | None, device: str | None) -> Iterator[Finding]:
    """Everything that can be found out, of one attach or of all that are possible now."""
    backend, _, port = (device or "").partition(":")
    names = {vm.name for vm in app.domains}
    asked = [name for name in (qube, backend) if name]
    for name in asked:
        if name not in names:
            yield Finding("dom0", "error", f"there is no qube {_shown(name)}", "qvm-ls")
    if not names.issuperset(asked):
        return
    unseen: list[Finding] = []
    backends = [app.domains[backend]] if backend else list(_backends(app, unseen))
    frontends = [app.domains[qube]] if qube else list(_frontends(app, unseen))
    if not backends and not unseen:
        yield Finding("dom0", "error", "no qube has USB devices or controllers", "qvm-usb list")
    for vm in dict.fromkeys([*backends, *frontends]):
        yield from _qube(app, vm)
    for vm in backends:
        yield from _memory(vm)
    if qube and device:
        yield from _pair(app, app.domains[qube], app.domains[backend], port, unseen)
    yield from dict.fromkeys(unseen)


def _shown(untrusted_text: str) -> str:
    return printable(untrusted_text.encode(errors="replace"), 60)


def _attempt(vm: Any, what: str, value: Any) -> Any:
    """What the Admin API answers, or a Finding where it says nothing to whoever asks."""
    from qubesadmin.exc import QubesException  # noqa: PLC0415

    try:
        return value()
    except (QubesException, AttributeError, AssertionError) as error:
        text = f"{what} cannot be seen from here: {_shown(str(error))}"
        return Finding(vm.name, "warning", text)


def _devices(vm: Any, devclass: str, kind: str, unseen: list[Finding]) -> list[Any]:
    """Devices of a qube by a method of its collection; none, and why, where it may not be asked."""
    what = f"which {devclass.upper()} devices are {kind}"
    found = _attempt(vm, what, lambda: list(getattr(vm.devices[devclass], f"get_{kind}_devices")()))
    if isinstance(found, Finding):
        unseen.append(found)
        return []
    return list(found)


def _backends(app: Any, unseen: list[Finding]) -> Iterator[Any]:
    """The qubes with USB devices, or with a USB controller."""
    for vm in app.domains:
        if vm.klass == "AdminVM":
            continue
        if _devices(vm, "usb", "exposed", unseen) or _has_controller(vm, unseen):
            yield vm


def _has_controller(vm: Any, unseen: list[Finding]) -> bool:
    """Whether a qube has a USB controller, as far as dom0's devices may be seen."""
    assigned = _devices(vm, "pci", "assigned", unseen)
    what = "which PCI devices are USB controllers"
    kinds = _attempt(vm, what, lambda: [repr(k) for a in assigned for k in a.device.interfaces])
    if isinstance(kinds, Finding):
        unseen.append(kinds)
        return False
    return any(kind.startswith(USB_CONTROLLER) for kind in kinds)


def _frontends(app: Any, unseen: list[Finding]) -> Iterator[Any]:
    """The running qubes that have, or are to have, a USB device."""
    for vm in app.domains:
        if vm.klass == "AdminVM" or not _may_run(vm):
            continue
        if any(_devices(vm, "usb", kind, unseen) for kind in ("attached", "assigned")):
            yield vm


def _may_run(vm: Any) -> bool:
    """Whether a qube runs, or is one whose state may not be seen."""
    return bool(vm.is_running()) or (vm.klass != "RemoteVM" and vm.get_power_state() == UNKNOWN)


def _qube(app: Any, vm: Any) -> Iterator[Finding]:
    """Whether a qube runs, has the package, and finds its own side in order."""
    if vm.klass == "AdminVM":
        text = "USB devices cannot be attached to or from dom0"
        yield Finding(vm.name, "error", text, "qvm-ls")
        return
    state = vm.get_power_state()
    if state == UNKNOWN:
        yield Finding(vm.name, "warning", "whether the qube runs cannot be seen from here")
    elif state != "Running":
        starts = {"Paused": "qvm-unpause", "Suspended": "qvm-unpause"}
        repair = f"{starts.get(state, 'qvm-start')} {vm.name}"
        yield Finding(vm.name, "error", f"the qube does not run ({_shown(state)})", repair)
        return
    try:
        as_root = app.qubesd_connection_type == "socket"
        answer = _attempt(vm, "the package", lambda: ask(vm, as_root=as_root))
    except (NoAnswerError, OSError) as error:
        yield Finding(vm.name, "warning", f"the qube cannot be asked: {error}")
        return
    if isinstance(answer, Finding):
        yield answer
        return
    if answer.findings is not None:
        yield Finding(vm.name, "ok", f"qubes-usb-proxy {answer.version} is installed")
        yield from answer.findings
    elif answer.version:
        text = f"qubes-usb-proxy {answer.version} is too old to check itself"
        yield Finding(vm.name, "warning", text, _install(vm))
    else:
        text = f"qubes-usb-proxy is not installed in {installing.template(vm)}"
        yield Finding(vm.name, "error", text, _install(vm))


def _install(vm: Any) -> str:
    """The command that installs the package, where it may be known."""
    command = _attempt(vm, "its distribution", lambda: installing.command(vm))
    return "" if isinstance(command, Finding) else str(command)


def _memory(vm: Any) -> Iterator[Finding]:
    memory = _attempt(vm, "its memory", lambda: int(vm.memory))
    if isinstance(memory, Finding):
        yield memory
    elif memory < LEAST_MEMORY:
        text = f"the qube has {memory} MiB of memory; each attached device takes about 10"
        yield Finding(vm.name, "warning", text, f"qvm-prefs {vm.name} memory 400")
    else:
        yield Finding(vm.name, "ok", f"the qube has {memory} MiB of memory")


def _pair(
    app: Any, frontend: Any, backend: Any, port: str, unseen: list[Finding]
) -> Iterator[Finding]:
    """One device and the qube that should have it."""
    if frontend == backend:
        yield Finding(frontend.name, "error", "the device is in this qube already")
        return
    exposed = _devices(backend, "usb", "exposed", unseen)
    device = next((each for each in exposed if each.port_id == port), None)
    if device is None and unseen:
        return  # It cannot be told whether the device is there.
    if device is None:
        ports = " ".join(sorted(each.port_id for each in exposed)) or "none"
        text = f"there is no device in {_shown(port)}; the qube has: {ports}"
        yield Finding(backend.name, "error", text, "qvm-usb list")
        return
    yield Finding(backend.name, "ok", f"the device is there: {_shown(device.description)}")
    yield from _holders(app, frontend, device, unseen)
    yield from _denied(frontend, device)
    if app.qubesd_connection_type == "socket":
        yield from rules.examine(_source(frontend), backend.name, port)
    else:
        yield Finding("dom0", "warning", "dom0's policy cannot be seen from this qube")


def _source(frontend: Any) -> str:
    """Who calls qubes.USB: the qube, or its stub domain (`has_stub_domain` in services.py)."""
    has_stub_domain = frontend.virt_mode == "hvm" and frontend.features.check_with_template(
        "stubdom-qrexec", False
    )
    return str(frontend.name) + (STUB_DOMAIN_SUFFIX if has_stub_domain else "")


def _holders(app: Any, frontend: Any, device: Any, unseen: list[Finding]) -> Iterator[Finding]:
    """Who has a device, and who else is to have it."""
    for vm in app.domains:
        if vm.klass == "AdminVM":
            continue
        if _may_run(vm):
            for attached in _devices(vm, "usb", "attached", unseen):
                if (attached.backend_domain, attached.port_id) == (
                    device.backend_domain,
                    device.port_id,
                ):
                    name = f"{device.backend_domain}:{device.port_id}"
                    level = "ok" if vm == frontend else "error"
                    repair = "" if vm == frontend else f"qvm-usb detach {vm.name} {name}"
                    yield Finding(vm.name, level, "the device is attached to this qube", repair)
        assigned = _devices(vm, "usb", "assigned", unseen)
        if vm != frontend and any(each.matches(device) for each in assigned):
            yield Finding(vm.name, "warning", "the device is assigned to this qube, too")


def _denied(frontend: Any, device: Any) -> Iterator[Finding]:
    """Whether the qube's list of denied interfaces names one of the device's."""
    from qubesadmin import device_protocol  # noqa: PLC0415

    listed = _attempt(frontend, "the list of denied devices", lambda: frontend.devices_denied)
    if isinstance(listed, Finding):
        yield listed
        return
    patterns = device_protocol.DeviceInterface.from_str_bulk(listed)
    matching = [p for p in patterns if any(p.matches(each) for each in device.interfaces)]
    if matching:
        text = f"the qube's list of denied devices names this one: {_listed(matching)}"
        others = _listed([pattern for pattern in patterns if pattern not in matching])
        repair = f"qvm-prefs {frontend.name} devices_denied '{others}'"
        yield Finding(frontend.name, "error", text, repair)


def _listed(patterns: Sequence[object]) -> str:
    return "".join(map(repr, patterns))


if __name__ == "__main__":
    sys.exit(main())
