# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks of what differs between the qube with the controllers and the others: kernel, QubesDB."""

from __future__ import annotations

from usb_proxy import locks, sysfs
from usb_proxy.backend import usbip_host
from usb_proxy.errors import NoDeviceError, SystemLackError
from usb_proxy.frontend import gates, vhci
from usb_proxy.idents import QUBESDB, BusId, qubesdb_key
from usb_proxy.kernel import AUTOPROBE, DENY_NEW, VHCI_DRIVER, VHCI_MODULE, PortState
from usb_proxy.tool import findings, overview
from usb_proxy.tool.findings import error, ok, warning

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from usb_proxy.host import Host
    from usb_proxy.tool.findings import Finding

SLOTS = 16
"""MAX_BUSID, drivers/usb/usbip/stub.h."""

DEFAULT = "/sys/module/usbcore/parameters/authorized_default"
"""What a bus that comes has as its `authorized_default`."""

CLOSED = ("0", "2")
"""Nothing is authorized, or what is built in alone, as firmware says (drivers/usb/core/hub.c)."""

MODPROBE_FOLDERS = (
    *("/etc/modprobe.d", "/run/modprobe.d", "/usr/local/lib/modprobe.d"),
    *("/usr/lib/modprobe.d", "/lib/modprobe.d"),
)
"""modprobe.d(5): of files of one name, that in the first of these counts."""


def exporter_module(host: Host) -> Iterator[Finding]:
    """The kernel's half of the exporter."""
    yield _module(host, usbip_host.NAME, usbip_host.DRIVER)


def importer_module(host: Host) -> Iterator[Finding]:
    """The kernel's half of the importer."""
    yield _module(host, VHCI_MODULE, VHCI_DRIVER)


def _module(host: Host, name: str, driver: str) -> Finding:
    """Whether a module is loaded, or can be when it is needed."""
    if host.exists(driver):
        return ok("module", f"the kernel module {name} is loaded")
    if hindrance := _hindrance(host, name):
        return hindrance
    release = host.release()
    modules = f"/lib/modules/{release}"
    # Debian names them usbip-host.ko and vhci-hcd.ko; modules.dep(5), also .ko.xz and .ko.zst.
    if _is_listed(host, f"{modules}/modules.dep", name):
        return ok("module", f"the kernel module {name} is loaded when it is needed")
    for folder in (f"{modules}/kernel/drivers/usb/usbip", f"{modules}/updates"):
        if any(file.startswith(f"{name}.ko") for file in host.listing(folder)):
            text = f"the kernel module {name} is there, but the list of modules lacks it"
            return error("module", text, f"depmod {release}")
    text = f"the kernel {release} has no module {name}; use one with USB/IP"
    return error("module", text, findings.package_of_modules(host, release))


def _hindrance(host: Host, name: str) -> Finding | None:
    """What keeps a module from being loaded, where somebody has said so."""
    if findings.text(host, "/proc/sys/kernel/modules_disabled").strip() == "1":
        text = f"this qube's kernel loads no more modules, and {name} is not loaded"
        repair = f"echo {name} > /etc/modules-load.d/{findings.PACKAGE}.conf"
        return error("module", f"{text}; let its template load it at boot", repair)
    if word := _word(host, name):
        text = f"{word} keeps the kernel module {name} from being loaded; see "
        where = "qvm-prefs QUBE kernelopts in dom0, or this qube's boot loader and modprobe.d"
        return error("module", text + where, None)
    wanted = [[each] for module in (name, "usbip-core") for each in _spellings(module)]
    seen: set[str] = set()
    for folder in MODPROBE_FOLDERS:
        for file in host.listing(folder):
            is_read = file.endswith(".conf") and file not in seen
            seen.add(file)
            text = findings.text(host, f"{folder}/{file}") if is_read else ""
            for words in (line.split() for line in text.splitlines()):
                if words[:1] == ["install"] and words[1:2] in wanted:
                    said = f"{folder}/{file} keeps the kernel module {name} from being loaded"
                    repair = f"sed -i '/^ *install *{words[1]} /d' {folder}/{file}"
                    return error("module", said, repair)
    return None


def _word(host: Host, name: str) -> str:
    """That of the kernel's command line which keeps a module, or all of USB, out of it.

    Documentation/admin-guide/kernel-parameters.txt, `nousb` and `module_blacklist`.
    """
    modules = {each.replace("-", "_") for each in (name, "usbip-core", "usbcore")}
    for word in findings.text(host, "/proc/cmdline").split():
        key, _, value = word.partition("=")
        is_off = key in ("nousb", "usbcore.nousb") and value.lower() in ("", "1", "y", "on")
        if is_off or (key == "module_blacklist" and modules & set(value.split(","))):
            return word
    is_off = findings.text(host, "/sys/module/usbcore/parameters/nousb").strip() == "Y"
    return "usbcore.nousb" if is_off else ""


def _spellings(module: str) -> tuple[str, str]:
    return module, module.replace("-", "_")


def _is_listed(host: Host, path: str, module: str) -> bool:
    try:
        return any(f"/{module}.ko" in line.partition(":")[0] for line in host.read_lines(path))
    except FileNotFoundError:
        return False


def buses(host: Host) -> Iterator[Finding]:
    """The controllers of a backend."""
    names = findings.controllers(host)
    yield ok("controllers", f"this qube has {len(names)} USB buses of its own")
    # usb-export authorizes what it lends.
    yield from _authorization(host, names, "; you can still attach them")


def virtual_buses(host: Host) -> Iterator[Finding]:
    """Those of vhci-hcd, at which devices of other qubes appear."""
    own = findings.controllers(host)
    names = host.listing(sysfs.DEVICES)
    virtual = [name for name in names if name.startswith("usb") and name not in own]
    shut = [f"{sysfs.DEVICES}/{name}/authorized" for name in virtual]
    shut = [path for path in shut if findings.text(host, path).strip() == "0"]
    if shut:
        text = "this qube blocks its own virtual hubs, so no device arrives"
        yield error("authorization", text, f"echo 1 | tee {' '.join(shut)}")
    if not virtual and findings.text(host, DEFAULT).strip() in CLOSED:
        text = "this qube's kernel blocks new devices until they are allowed"
        repair = f"modprobe {VHCI_MODULE} && echo 1 | tee {vhci.PLATFORM}/vhci_hcd.*/usb*/"
        yield warning("authorization", text, f"{repair}authorized_default")
    # While it judges what arrives, usb-import closes a bus itself.
    others = [name for name in virtual if not gates.is_closed_for_devices(host, name[3:])]
    yield from _authorization(host, others, "")
    others = [name for name in virtual if not gates.is_closed(host, name[3:])]
    closed = [f"{sysfs.DEVICES}/{name}/interface_authorized_default" for name in others]
    closed = [path for path in closed if findings.text(host, path).strip() == "0"]
    if closed:
        text = "this qube keeps drivers from the interfaces of new devices"
        yield warning("authorization", text, f"echo 1 | tee {' '.join(closed)}")
    if findings.text(host, AUTOPROBE).strip() == "0":
        text = "this qube's kernel gives no USB device a driver by itself"
        yield warning("authorization", text, f"echo 1 | tee {AUTOPROBE}")
    if vhci.is_shut(host):
        text = "this qube's kernel takes no new USB devices"
        yield error("authorization", text, f"echo 0 | tee {DENY_NEW}")


def _authorization(host: Host, names: list[str], consequence: str) -> Iterator[Finding]:
    """Buses whose newcomers the kernel does not configure (Documentation/usb/authorization.rst)."""
    paths = [f"{sysfs.DEVICES}/{name}/authorized_default" for name in names]
    closed = [path for path in paths if findings.text(host, path).strip() in CLOSED]
    if closed:
        who = "; usbguard decides" if host.find_command("usbguard") else ""
        text = f"this qube blocks new devices at {len(closed)} USB buses until they are allowed"
        repair = f"echo 1 | tee {' '.join(closed)}"
        yield warning("authorization", f"{text}{who}{consequence}", repair)


def slots(host: Host) -> Iterator[Finding]:
    """How many more devices usbip-host can take (stub_main.c, match_busid_show)."""
    if not host.exists(usbip_host.DRIVER):
        return
    names = host.read(f"{usbip_host.DRIVER}/match_busid").split()
    free = SLOTS - len(names)
    exports = [lock.name for lock in overview.lock_states(host, locks.EXPORT) if lock.holder]
    if free:
        yield ok("slots", f"usbip-host can take {free} more devices")
    elif exports:
        text = f"usbip-host has {SLOTS} devices and cannot take another"
        device = exports[0].removeprefix(locks.EXPORT)
        yield error("slots", text, f"{findings.PACKAGE} detach {device}")
    else:
        text = f"all {SLOTS} slots of usbip-host are taken by devices that are not attached"
        yield error("slots", text, f"modprobe -r {usbip_host.NAME}")


def ports(host: Host) -> Iterator[Finding]:
    """How many more devices a frontend can take."""
    if not host.exists(VHCI_DRIVER):
        return
    every = list(vhci.ports(host))
    taken = [each for each in overview.overview(host)["attachments"] if each["backend"]]
    for half, speed in (("hs", "high-speed"), ("ss", "SuperSpeed")):
        mine = [port for port in every if port.half == half]
        free = sum(port.state == PortState.FREE for port in mine)
        if free:
            yield ok("ports", f"{free} of {len(mine)} virtual {speed} ports are free")
            continue
        own = [each for each in taken if each["port"] in [port.number for port in mine]]
        name = f"{own[0]['backend']}:{own[0]['device']}" if own else None
        repair = f"{findings.PACKAGE} detach {name}" if name else None
        yield error("ports", f"all {len(mine)} virtual {speed} ports are taken", repair)


def qubesdb(host: Host) -> Iterator[Finding]:
    """Whether dom0 can be told, and what it was told of the dead."""
    repair = "systemctl restart qubes-db"
    try:
        code, _ = host.run(["qubesdb-list", f"{QUBESDB}/"])
    except SystemLackError as failure:
        yield error("QubesDB", str(failure), findings.reinstall(host, "qubesdb-vm"))
        return
    if code and not host.is_root():
        text = "QubesDB does not answer this user"
        yield warning("QubesDB", text, findings.AS_ROOT)
    elif code:
        text = "QubesDB does not answer, so dom0 cannot see what is attached"
        yield error("QubesDB", text, repair)
    else:
        yield ok("QubesDB", "QubesDB answers")
        for each in overview.overview(host)["devices"]:
            key = qubesdb_key(BusId(each["device"]))
            is_free = each["state"] == overview.FREE
            if is_free and host.run(["qubesdb-read", f"{key}/connected-to"])[0] == 0:
                text = f"dom0 was told that {each['device']} is attached, but it is not"
                clean = f"qubesdb-rm {key}/connected-to {key}/x-pid"
                yield error("QubesDB", text, f"{clean}; qubesdb-write {QUBESDB} ''")


def usbguard(host: Host) -> Iterator[Finding]:
    """What usbguard, where it is installed, thinks of each device."""
    if host.find_command("usbguard") is None:
        return
    blocked = []
    for each in overview.overview(host)["devices"]:
        try:
            with sysfs.UsbDevice(host, BusId(each["device"])) as device:
                if not device.is_authorized() and not usbip_host.is_held(device):
                    blocked.append(each["device"])
        except NoDeviceError:
            continue  # It has gone.
    if host.is_root() and host.run(["usbguard", "list-devices"])[0]:
        text = "usbguard does not answer"
        if blocked:
            text += f", so this qube cannot use {' and '.join(blocked)}; an attach still works"
        yield warning("usbguard", text, "systemctl restart usbguard")
        return
    for bus_id in blocked:
        text = f"usbguard blocks USB device {bus_id} except while it is attached"
        yield warning("usbguard", text, f"usbguard allow-device 'via-port \"{bus_id}\"'")
    if not blocked:
        yield ok("usbguard", "usbguard allows all devices of this qube")
