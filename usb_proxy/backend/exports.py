# SPDX-License-Identifier: GPL-2.0-or-later
"""What an exporter notes, and how its device is given back, also after its death."""

from __future__ import annotations

from usb_proxy import endings, locks, sysfs
from usb_proxy.backend import qubesdb, usbip_host
from usb_proxy.errors import InUseError, NoDeviceError, NotAttachedError, SystemLackError, reason
from usb_proxy.sysfs import UsbDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usb_proxy.host import Host
    from usb_proxy.idents import BusId

KEEP_UNBOUND = "/run/qubes-service/usb-proxy-keep-unbound"
"""With this qube service a device that was attached gets no driver until it is plugged again."""

GIVE_BACK_SECONDS = 25.0
"""How long an exporter may take to give a device back: the kernel's reset alone may take 20 s. The
next one's importer waits for 30 s."""

START_SECONDS = 5.0
"""How long an exporter may take to hand its device over, so that it is looked at once more; a
device that leaves the bus takes longer. One that fails is waited for, too."""

BLOCKED = " blocked-"


def note(host: Host, blocked: UsbDevice | None, state: str = "") -> str:
    """What an exporter notes: who it is, which device is to be `blocked`, and its own state."""
    mark = ""
    if blocked:
        try:
            mark = BLOCKED + blocked.attribute("devnum")
        except NoDeviceError:
            mark = BLOCKED  # What comes to its port is known by usbip-host alone.
    return f"{host.pid()}{mark} {state}".rstrip()


def was_blocked(device: UsbDevice, lock: locks.Lock) -> bool:
    """Whether a device was not authorized before it was lent, by a dead exporter or not yet.

    It is known by its number, too, where somebody has taken it from usbip-host since: a bus gives
    one again after all others (drivers/usb/core/hub.c, choose_devnum).
    """
    is_held = usbip_host.is_held(device)
    _, mark, number = lock.leftover.partition(BLOCKED)
    if mark and (is_held or number.split(" ")[0] == device.attribute("devnum")):
        return True
    return not device.is_authorized()


def denies_interface(host: Host, device: UsbDevice) -> bool:
    """Whether somebody in this qube keeps drivers from an interface of a device by hand.

    The kernel authorizes it anew when it configures the device, unless the whole bus is closed.
    """
    closed = "interface_authorized_default"
    return bool(device.unauthorized()) and _default(host, device.bus_id, closed) != "0"


def acquire(host: Host, lock: locks.Lock, bus_id: BusId) -> InUseError | None:
    """Take an exporter's lock: at once, or when the one that is ending, or fails, has ended.

    Else gives what the living one does: it lends the device, is not done, or does not end.
    """
    noted: str | None = None
    for seconds in (endings.NEWS_SECONDS, START_SECONDS, GIVE_BACK_SECONDS - START_SECONDS):
        if lock.acquire(seconds):
            return None
        noted = locks.Lock(host, lock.name).holders_note()
        if noted is not None and noted.endswith(endings.ATTACHED):
            return InUseError("UP-401", device=bus_id)
    if noted is None or noted.endswith(endings.ENDING):
        return InUseError("UP-422", device=bus_id)
    return InUseError("UP-423", device=bus_id)


def give_back(host: Host, device: UsbDevice, blocked: bool) -> None:
    """Give a device back as it was, or as this qube's services say; its lock must be held."""
    keep_unbound = host.exists(KEEP_UNBOUND)
    is_there = usbip_host.give_back(host, device, keep_unbound, blocked)
    if blocked:
        from usb_proxy.backend import authorization  # noqa: PLC0415

        authorization.tell_of_end(host, device)
    if keep_unbound or (blocked and not is_there and _is_open(host, device.bus_id)):
        from usb_proxy.backend import reenumeration  # noqa: PLC0415

        reenumeration.shut(host, device, keep_unbound)


def _is_open(host: Host, bus_id: BusId) -> bool:
    """Whether the kernel authorizes what appears on a bus, so that a permission would be kept."""
    return _default(host, bus_id, "authorized_default") not in ("0", "")


def _default(host: Host, bus_id: BusId, name: str) -> str:
    """What is so for newcomers on a bus; nothing where that has gone, too."""
    try:
        return host.read(f"{sysfs.DEVICES}/usb{bus_id.partition('-')[0]}/{name}").strip()
    except OSError:
        return ""


def end(host: Host, bus_id: BusId, lock: locks.Lock, why: str) -> None:
    """Unpublish a device and give it back, as its exporter would; `lock` is its lock, held.

    `why` is for dom0, see `qubesdb`.
    """
    endings.note_end(lock)
    try:
        is_plugged = host.exists(f"{sysfs.DEVICES}/{bus_id}")
        qubesdb.unpublish(host, bus_id, is_plugged, why)
    finally:
        try:
            with UsbDevice(host, bus_id) as device:
                is_lent = usbip_host.is_held(device) or device.is_authorized()
                give_back(host, device, is_lent and was_blocked(device, lock))
        except NoDeviceError:
            pass  # Unplugged: there is nothing to give back.
    endings.tell_of_death(host, lock)
    lock.note("")


def take_back(host: Host, bus_id: BusId) -> None:
    """End the export of a device of this backend, whoever runs it, or what is left of it.

    NotAttachedError when there is nothing of the kind.
    """
    lock = locks.export_lock(host, bus_id)
    found = endings.stop(host, lock)
    if lock.acquire(0):
        with lock:
            if lock.leftover or _is_held(host, bus_id):
                end(host, bus_id, lock, qubesdb.DETACHED)
                found = True
    if not found:
        raise NotAttachedError("UP-502", device=bus_id)


def _is_held(host: Host, bus_id: BusId) -> bool:
    try:
        with UsbDevice(host, bus_id) as device:
            return usbip_host.is_held(device)
    except NoDeviceError:
        return False


def remember(host: Host, bus_id: BusId, identity: str, departures: int) -> None:
    """Remember how often a device left the bus before it stayed; its export lock must be held.

    One line for a port, of the last device that left there: it is gone at the next boot.
    """
    path = _path(bus_id)
    try:
        host.make_file(path, f"{departures} {identity}\n")
    except OSError as error:
        raise SystemLackError("UP-717", path=path, reason=reason(error)) from error


def recall(host: Host, bus_id: BusId, identity: str) -> int | None:
    """What `remember` remembered of this device; None if nothing."""
    try:
        count, _, known = host.read(_path(bus_id)).rstrip("\n").partition(" ")
    except OSError:
        return None
    return int(count) if known == identity and count.isdigit() else None


def _path(bus_id: BusId) -> str:
    """Where it is remembered that a device left the bus; mostly there is no such file."""
    return f"{locks.LOCKS}/left-{bus_id}"
