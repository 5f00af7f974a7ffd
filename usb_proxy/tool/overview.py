# SPDX-License-Identifier: GPL-2.0-or-later
"""What is attached to and from this qube, from what every user may read.

Nothing here opens a lock: the kernel's list says who holds one, its file's size whether something
is to be cleaned up, and its notice what it is for.
"""

from __future__ import annotations

import os

from usb_proxy import runstate, sysfs, usbip_host, vhci
from usb_proxy.errors import (
    NoDeviceError,
    RequestError,
    SystemLackError,
    UsbProxyError,
    printable,
    reason,
)
from usb_proxy.idents import BusId, DomainName, parse_target
from usb_proxy.kernel import PortState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypedDict

    from usb_proxy.host import Host

    class Device(TypedDict):
        """A device that is plugged in here."""

        device: str
        vendor: str
        product: str
        name: str
        speed: str
        driver: str | None
        state: str
        peer: str | None
        since: int | None

    class Attachment(TypedDict):
        """A port of this qube that a device of another one has."""

        backend: str | None
        device: str | None
        port: int
        here: str | None
        vendor: str | None
        product: str | None
        name: str | None
        speed: str | None
        state: str
        since: int | None

    class Leftover(TypedDict):
        """What a dead process did not clean up."""

        role: str
        device: str
        peer: str | None
        since: int | None

    class Overview(TypedDict):
        """All of it; the format of `status --json`."""

        version: int
        devices: list[Device]
        attachments: list[Attachment]
        leftovers: list[Leftover]


VERSION = 1
"""Of the format: the same as long as no member goes or changes its meaning."""

FREE, ATTACHED, LEFT, FOREIGN = "free", "attached", "left over", "used by another program"

NAME_LIMIT = 60


class Lock:
    """A lock as every user sees it: `holder` is a pid or None, `has_note` means not cleaned up."""

    __slots__ = ("has_note", "holder", "name", "since", "told")

    def __init__(self, host: Host, name: str, holders: dict[str, int]) -> None:
        state = os.stat(f"{host.root}{runstate.LOCKS}/{name}.lock")
        device = f"{os.major(state.st_dev):02x}:{os.minor(state.st_dev):02x}"
        self.name = name
        self.holder = holders.get(f"{device}:{state.st_ino}")
        self.has_note = state.st_size > 0
        self.told: str | None = None
        self.since: int | None = None
        try:
            self.told, since = runstate.notice(host, name)
            self.since = int(since)
        except FileNotFoundError:
            pass


def locks(host: Host, prefix: str = "") -> list[Lock]:
    """The locks whose names begin with `prefix`, held or left by the dead.

    SystemLackError when the folder may not be looked into.
    """
    found: list[Lock] = []
    try:
        names = runstate.lock_names(host, prefix)
        holders = _holders(host) if names else {}
        for name in names:
            try:
                found.append(Lock(host, name, holders))
            except FileNotFoundError:
                continue  # It was given up just now.
    except OSError as error:
        raise SystemLackError("UP-720", path=runstate.LOCKS, reason=reason(error)) from error
    return found


def _holders(host: Host) -> dict[str, int]:
    """Who holds the POSIX locks of this machine: `DEVICE:INODE`, as the kernel writes it, to pid.

    fs/locks.c, lock_get_status: `NUMBER: POSIX ADVISORY WRITE PID MAJOR:MINOR:INODE START END`,
    with `->` after the number for those that wait.
    """
    with open(f"{host.root}/proc/locks", encoding="ascii") as file:
        lines = [line.split() for line in file]
    return {words[5]: int(words[4]) for words in lines if words[1] == "POSIX"}


def overview(host: Host) -> Overview:
    """All that is to know of this moment; SystemLackError where this user may not look."""
    held = locks(host)
    return {
        "version": VERSION,
        "devices": list(_devices(host, held)),
        "attachments": list(_attachments(host, held)),
        "leftovers": [_leftover(lock) for lock in held if is_left(lock)],
    }


def is_left(lock: Lock) -> bool:
    """Whether the holder died with something to clean up."""
    return lock.holder is None and lock.has_note


def _leftover(lock: Lock) -> Leftover:
    if lock.name.startswith(runstate.EXPORT):
        role, peer, device = "export", lock.told, lock.name.removeprefix(runstate.EXPORT)
    else:
        role = "import"
        peer, device = runstate.split_attachment(lock.name.removeprefix(runstate.IMPORT))
    return {"role": role, "device": device, "peer": peer, "since": lock.since}


def _devices(host: Host, held: list[Lock]) -> Iterator[Device]:
    """The devices that can be attached to other qubes: no hubs, and none that came from one."""
    exports = {lock.name: lock for lock in held}
    for name in host.listing(sysfs.DEVICES):
        if name.startswith("usb") or ":" in name:
            continue
        try:
            with sysfs.UsbDevice(host, BusId(name)) as device:
                if not device.refusal():
                    yield _device(device, exports.get(f"{runstate.EXPORT}{name}"))
        except NoDeviceError:
            continue  # It went while it was looked at.


def _device(device: sysfs.UsbDevice, lock: Lock | None) -> Device:
    vendor, _, product = device.product().partition(":")
    driver = device.driver()
    state, peer, since = FREE, None, None
    if lock is not None and lock.told is not None and (lock.holder or is_left(lock)):
        state, peer, since = LEFT if is_left(lock) else ATTACHED, lock.told, lock.since
    elif driver == usbip_host.NAME:
        state = FOREIGN if lock is None or lock.holder is None else ATTACHED
    return {
        "device": device.bus_id,
        "vendor": vendor,
        "product": product,
        "name": _name(device),
        "speed": device.attribute("speed"),
        "driver": driver,
        "state": state,
        "peer": peer,
        "since": since,
    }


def _name(device: sysfs.UsbDevice) -> str:
    """What the device calls itself, made safe to show."""
    untrusted_texts = []
    for attribute in ("manufacturer", "product"):
        try:
            untrusted_texts.append(device.attribute(attribute))
        except NoDeviceError:
            continue  # It has none, or has gone; who reads on will notice.
    untrusted_name = " ".join(untrusted_texts).encode("ascii", "replace")
    return printable(untrusted_name, NAME_LIMIT)


def _attachments(host: Host, held: list[Lock]) -> Iterator[Attachment]:
    """What is in the ports of vhci-hcd."""
    if not host.exists(vhci.DRIVER):
        return
    # The dead first: a port of theirs may have passed to a living importer.
    counts = [lock for lock in held if is_left(lock)] + [lock for lock in held if lock.holder]
    imports = {lock.told: lock for lock in counts if lock.name.startswith(runstate.IMPORT)}
    # Who was started before a package of a version with notices came has told of none.
    by_name = {lock.name: lock for lock in counts}
    records = _records(host)
    for port in vhci.ports(host):
        if port.state == PortState.FREE:
            continue
        lock = imports.get(str(port.number))
        lock = lock or by_name.get(f"{runstate.IMPORT}{records.get(port.number)}")
        state = FOREIGN if lock is None else LEFT if is_left(lock) else ATTACHED
        name = records.get(port.number) if lock is None else lock.name.removeprefix(runstate.IMPORT)
        backend, device = runstate.split_attachment(name) if name else (None, None)
        found: Attachment = {
            "backend": backend,
            "device": device,
            "port": port.number,
            "here": None,
            "vendor": None,
            "product": None,
            "name": None,
            "speed": None,
            "state": state,
            "since": lock.since if lock else None,
        }
        _look_at(host, port, found)
        yield found


def _look_at(host: Host, port: vhci.Port, found: Attachment) -> None:
    """Fill in what the device in a port is, once the kernel has set it up."""
    try:
        bus_id = os.path.basename(vhci.device_path(host, port))
        with sysfs.UsbDevice(host, BusId(bus_id)) as device:
            found["speed"] = device.attribute("speed")
            found["name"] = _name(device)
            found["vendor"], _, found["product"] = device.product().partition(":")
            found["here"] = bus_id
    except UsbProxyError:
        pass  # Not yet, or no more.


def _records(host: Host) -> dict[int, str]:
    """The attachments of a program that knows no locks, by port.

    The group `qubes` may write there: a name that is none of an attachment is skipped.
    """
    found: dict[int, str] = {}
    try:
        untrusted_names = host.listing(runstate.RECORDS)
    except PermissionError:
        return {}  # Where only the group `qubes` may look; the port is listed all the same.
    prefix, suffix = runstate.RECORD_PREFIX, runstate.RECORD_SUFFIX
    for untrusted_name in untrusted_names:
        if untrusted_name.startswith(prefix) and untrusted_name.endswith(suffix):
            untrusted_attachment = untrusted_name.removeprefix(prefix).removesuffix(suffix)
            untrusted_backend, untrusted_device = runstate.split_attachment(untrusted_attachment)
            try:
                backend = DomainName.parse(untrusted_backend)
                attachment = runstate.attachment_name(backend, parse_target(untrusted_device))
            except RequestError:
                continue
            port = runstate.read_record(host, attachment)
            if port is not None:
                found[port] = attachment
    return found
