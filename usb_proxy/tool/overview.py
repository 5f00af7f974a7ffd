# SPDX-License-Identifier: GPL-2.0-or-later
"""What is attached to and from this qube, from what every user may read.

Nothing here opens a lock: the kernel's list says who holds one, its file's size whether something
is to be cleaned up, and its notice what it is for.
"""

from __future__ import annotations

from threading import Thread

from usb_proxy import locks, sysfs
from usb_proxy.backend import usage, usbip_host
from usb_proxy.errors import (
    NoDeviceError,
    RequestError,
    SystemLackError,
    UsbProxyError,
    printable,
    reason,
)
from usb_proxy.files import inode
from usb_proxy.frontend import gates, records, vhci
from usb_proxy.idents import Attachment, BusId
from usb_proxy.kernel import VHCI_DRIVER, PortState

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
        used_by: list[str]

    class UsedPort(TypedDict):
        """A port of this qube that a device of another one has."""

        backend: str | None
        device: str | None
        port: int
        here: str | None
        vendor: str | None
        product: str | None
        name: str | None
        speed: str | None
        unannounced: list[str]
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
        attachments: list[UsedPort]
        leftovers: list[Leftover]


VERSION = 1
"""Of the format: the same as long as no member goes or changes its meaning."""

FREE, ATTACHED, LEFT, FOREIGN = "free", "attached", "left over", "used by another program"

NAME_LIMIT = 60
NAME_SECONDS = 0.5


class LockState:
    """A lock as every user sees it: `holder` is a pid or None, `has_note` means not cleaned up."""

    __slots__ = ("has_note", "holder", "name", "since", "told")

    def __init__(self, host: Host, name: str, holders: dict[str, int]) -> None:
        state = host.details(f"{locks.LOCKS}/{name}.lock")
        self.name = name
        self.holder = holders.get(inode(state))
        self.has_note = state.st_size > 0
        self.told: str | None = None
        self.since: int | None = None
        try:
            self.told, since = locks.notice(host, name)
            self.since = int(since)
        except FileNotFoundError:
            pass


def lock_states(host: Host, prefix: str = "") -> list[LockState]:
    """The locks whose names begin with `prefix`, held or left by the dead.

    SystemLackError when the folder may not be looked into.
    """
    found: list[LockState] = []
    try:
        names = locks.lock_names(host, prefix)
        holders = _holders(host) if names else {}
        for name in names:
            try:
                found.append(LockState(host, name, holders))
            except FileNotFoundError:
                continue  # It was given up just now.
    except OSError as error:
        raise SystemLackError("UP-720", path=locks.LOCKS, reason=reason(error)) from error
    return found


def _holders(host: Host) -> dict[str, int]:
    """Who holds the POSIX locks of this machine: `files.inode` to pid.

    fs/locks.c, lock_get_status: `NUMBER: POSIX ADVISORY WRITE PID MAJOR:MINOR:INODE START END`,
    with `->` after the number for those that wait.
    """
    lines = [line.split() for line in host.read_lines("/proc/locks")]
    return {words[5]: int(words[4]) for words in lines if words[1] == "POSIX"}


def overview(host: Host) -> Overview:
    """All that is to know of this moment; SystemLackError where this user may not look."""
    held = lock_states(host)
    return {
        "version": VERSION,
        "devices": list(_devices(host, held)),
        "attachments": list(_attachments(host, held)),
        "leftovers": [_leftover(lock) for lock in held if is_left(lock)],
    }


def is_left(lock: LockState) -> bool:
    """Whether the holder died with something to clean up."""
    return lock.holder is None and lock.has_note


def in_words(leftover: Leftover) -> str:
    """What a leftover is."""
    device, peer = leftover["device"], leftover["peer"] or "a qube"
    if leftover["role"] == "export":
        return f"{device}, attached to {peer}"
    return f"{peer}:{device}, attached to this qube"


def _leftover(lock: LockState) -> Leftover:
    subject = locks.subject(lock.name)
    if isinstance(subject, BusId):
        return {"role": "export", "device": subject, "peer": lock.told, "since": lock.since}
    device, peer = subject.device, subject.backend
    return {"role": "import", "device": device, "peer": peer, "since": lock.since}


def _devices(host: Host, held: list[LockState]) -> Iterator[Device]:
    """The devices that can be attached to other qubes: no hubs, and none that came from one."""
    exports = {lock.name: lock for lock in held}
    for name in host.listing(sysfs.DEVICES):
        if name.startswith("usb") or ":" in name:
            continue
        try:
            with sysfs.UsbDevice(host, BusId(name)) as device:
                if not device.refusal():
                    yield _device(host, device, exports.get(f"{locks.EXPORT}{name}"))
        except NoDeviceError:
            continue  # It went while it was looked at.


def _device(host: Host, device: sysfs.UsbDevice, lock: LockState | None) -> Device:
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
        "used_by": usage.users(host, device) if state == FREE else [],
    }


def _name(device: sysfs.UsbDevice) -> str:
    """What the device calls itself, made safe to show; nothing while the kernel keeps it locked.

    As while drivers set it up, which it can draw out (drivers/usb/core/sysfs.c, usb_string_attr).
    """
    untrusted_texts: list[str] = []

    def look() -> None:
        for attribute in ("manufacturer", "product"):
            try:
                untrusted_texts.append(device.attribute(attribute))
            except (UsbProxyError, OSError):
                continue  # It has none, or has gone; who reads on will notice.

    thread = Thread(target=look, daemon=True)
    thread.start()
    thread.join(NAME_SECONDS)  # What it reads later is told to nobody.
    untrusted_name = " ".join(untrusted_texts).encode("ascii", "replace")
    return printable(untrusted_name, NAME_LIMIT)


def _attachments(host: Host, held: list[LockState]) -> Iterator[UsedPort]:
    """What is in the ports of vhci-hcd."""
    if not host.exists(VHCI_DRIVER):
        return
    # The dead first: a port of theirs may have passed to a living importer.
    counts = [lock for lock in held if is_left(lock)] + [lock for lock in held if lock.holder]
    imports = {lock.told: lock for lock in counts if lock.name.startswith(locks.IMPORT)}
    # Who was started before a package of a version with notices came has told of none.
    by_name = {lock.name: lock for lock in counts}
    recorded = _records(host)
    for port in vhci.ports(host):
        if port.state == PortState.FREE:
            continue
        lock = imports.get(str(port.number))
        lock = lock or by_name.get(f"{locks.IMPORT}{recorded.get(port.number)}")
        state = FOREIGN if lock is None else LEFT if is_left(lock) else ATTACHED
        attachment = recorded.get(port.number)
        if lock is not None:
            attachment = Attachment(lock.name.removeprefix(locks.IMPORT))
        found: UsedPort = {
            "backend": attachment and attachment.backend,
            "device": attachment and attachment.device,
            "port": port.number,
            "here": None,
            "vendor": None,
            "product": None,
            "name": None,
            "speed": None,
            "unannounced": [],
            "state": state,
            "since": lock.since if lock else None,
        }
        _look_at(host, port, found)
        yield found


def _look_at(host: Host, port: vhci.Port, found: UsedPort) -> None:
    """Fill in what the device in a port is, once the kernel has set it up."""
    try:
        bus_id = vhci.device_path(host, port).rpartition("/")[2]
        with sysfs.UsbDevice(host, BusId(bus_id)) as device:
            found["speed"] = device.attribute("speed")
            found["name"] = _name(device)
            found["vendor"], _, found["product"] = device.product().partition(":")
            for name in gates.unannounced(host, device):
                parts = ("Class", "SubClass", "Protocol")
                kind = "".join(device.attribute(f"{name}/bInterface{part}") for part in parts)
                found["unannounced"].append(f"{name} ({kind})")
            found["here"] = bus_id
    except UsbProxyError:
        pass  # Not yet, or no more.


def _records(host: Host) -> dict[int, Attachment]:
    """The attachments of a program that knows no locks, by port.

    The group `qubes` may write there: a name that is none of an attachment is skipped.
    """
    found: dict[int, Attachment] = {}
    try:
        untrusted_names = host.listing(records.FOLDER)
    except PermissionError:
        return {}  # Where only the group `qubes` may look; the port is listed all the same.
    for untrusted_name in untrusted_names:
        try:
            attachment = records.parse(f"{records.FOLDER}/{untrusted_name}")
        except RequestError:
            continue
        port = records.read(host, attachment)
        if port is not None:
            found[port] = attachment
    return found
