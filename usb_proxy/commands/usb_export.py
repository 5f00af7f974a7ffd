# SPDX-License-Identifier: GPL-2.0-or-later
"""usb-export ARGUMENT: what `qubes.USB+ARGUMENT` runs in the backend, until the device is let go.

Its standard error reaches the frontend, so nothing in it may name another qube.
"""

from __future__ import annotations

import posix as os

from usb_proxy import (
    departures,
    handshake,
    journal,
    leftovers,
    qrexec,
    qubesdb,
    runstate,
    sysfs,
    usbip_host,
)
from usb_proxy.errors import (
    InUseError,
    NoDeviceError,
    RequestError,
    SystemLackError,
    UsbProxyError,
    printable,
)
from usb_proxy.idents import BusId, DomainName, Target, parse_target
from usb_proxy.sysfs import UsbDevice
from usb_proxy.uevents import Uevents

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from usb_proxy.host import Host

LOCK_SECONDS = 5.0
"""An exporter that is giving the device back needs less than half a second."""

SETTLE_SECONDS = 10.0
"""How much longer it may take if the device is known to leave the bus and come back."""

EARLY_SECONDS = 5.0
"""A device that leaves so soon after it was handed over did so because of that. It leaves within a
second, but we notice after we have told dom0 of it."""

DEPARTURES = 3
"""How often a device may leave each time; one that leaves more often has another fault."""

REENUMERATES = "QUBES_USB_REENUMERATES"
"""The udev property of devices that leave the bus when their configuration is taken away."""

RESET_SECONDS = 20.0
"""The kernel resets one device after the other when many connections end at once."""

RESET_ON_ATTACH = "/run/qubes-service/usb-reset-on-attach"


def main(arguments: Sequence[str], host: Host) -> int:
    """Export the device that the service argument names to the qube that calls."""
    if len(arguments) != 2:
        raise RequestError("UP-219")
    target = parse_target(arguments[1])
    frontend = qrexec.remote_domain(host)
    entry = journal.Attachment(host, target, frontend.owner, is_import=False)
    try:
        _serve(host, target, frontend, entry)
    except UsbProxyError as error:
        entry.failed(error)
        raise
    return 0


def _serve(host: Host, target: Target, frontend: DomainName, entry: journal.Attachment) -> None:
    """Export a device and give it back; `entry` tells the journal."""
    qrexec.require_root(host)
    link = qrexec.Link(host)
    host.load_module(usbip_host.NAME, usbip_host.DRIVER)
    # A bus id is looked for when nobody else has it: the device may be on its way back.
    bus_id = entry.device = target if isinstance(target, BusId) else sysfs.find(host, target)
    lock = runstate.export_lock(host, bus_id)
    leaves = host.exists(departures.path_of(bus_id))
    if not lock.acquire(LOCK_SECONDS + SETTLE_SECONDS * leaves):
        sysfs.find(host, bus_id)
        raise InUseError("UP-401", device=bus_id)
    with lock, UsbDevice(host, sysfs.find(host, bus_id)) as device:
        if not device.matches(target):
            raise NoDeviceError("UP-304", target=target)
        if usbip_host.is_in_use(device) and not lock.leftover:
            raise InUseError("UP-402", device=bus_id)
        if lock.leftover:
            # Now, as we may fail before we publish anything ourselves.
            qubesdb.unpublish(host, bus_id)
            leftovers.tell_of_death(host, lock)
        device.identity()  # As long as it is there.
        lock.note(str(os.getpid()))
        try:
            lock.tell(frontend.owner)
            _export(host, device, frontend, link, entry)
        finally:
            # It is unbound before the connection ends, and that before it is reset (stub_dev.c).
            was_there = usbip_host.is_held(device)
            has_left = not was_there and host.now() < link.sent_at + EARLY_SECONDS
            is_back = _end(host, device, link, has_left)
            lock.note("")
            if has_left and is_back:
                raise NoDeviceError("UP-309", device=bus_id)
        why = journal.DETACHED_THERE if was_there else journal.UNPLUGGED
        entry.detached(leftovers.why_stopped(host) or why)


def _export(
    host: Host,
    device: UsbDevice,
    frontend: DomainName,
    link: qrexec.Link,
    entry: journal.Attachment,
) -> None:
    """Take the device, hand it over, and return when the connection has ended.

    Or the device has gone. usbip-host ends the connection then, but not if the thread that unbinds
    the device has got the address of a dead one of its own (usbip_event.c, usbip_in_eh).
    """
    entry.product = device.product()
    link.use_both_ways()
    link.send(_prepare(host, device))
    usbip_host.hand_over(device, host.link)
    link.is_handed_over = True
    qubesdb.publish(host, device.bus_id, frontend)
    entry.attached()
    with Uevents() as events:
        while device.is_plugged() and not link.await_end(events.fileno()):
            events.pending()


def _prepare(host: Host, device: UsbDevice) -> bytes:
    """Take the device, and wait for it if it leaves the bus meanwhile or is known to do so.

    Gives the line that tells the other qube what it gets.
    """
    was_authorized = device.is_authorized()
    count = departures.recall(host, device.bus_id, device.identity())
    if count is None:
        count = int(device.property(REENUMERATES) == "1")
    if count:
        return _take_when_back(host, device, count, was_authorized)
    try:
        usbip_host.take(host, device)
        if device.property("QUBES_USB_RESET") == "1" or host.exists(RESET_ON_ATTACH):
            device.reset()
        return _offer(host, device)
    except NoDeviceError:
        from usb_proxy import reenumeration  # noqa: PLC0415

        if not reenumeration.leaves(host, device):
            raise
    return _take_when_back(host, device, 0, was_authorized)


def _take_when_back(host: Host, device: UsbDevice, count: int, was_authorized: bool) -> bytes:
    from usb_proxy import reenumeration  # noqa: PLC0415 (most devices do without its import)

    count = reenumeration.take(host, device, count, was_authorized)
    departures.remember(host, device.bus_id, device.identity(), count)
    return _offer(host, device)


def _offer(host: Host, device: UsbDevice) -> bytes:
    _allow_in_usbguard(host, device)
    return handshake.encode(device.devid(), device.attribute("speed"))


def _end(host: Host, device: UsbDevice, link: qrexec.Link, has_left: bool) -> bool:
    """End the connection if it is there, and give the device back; dom0 is told at once.

    `has_left` means that it left the bus soon after it was handed over. If it was not unplugged,
    but comes back, that is remembered. Gives whether it was waited for and is there again.
    """
    try:
        if link.is_handed_over:
            qubesdb.unpublish(host, device.bus_id)
    finally:
        if link.is_handed_over:
            link.end(host.now() + RESET_SECONDS)
        leftovers.give_back(host, device)
    count = departures.recall(host, device.bus_id, device.identity()) or 0
    if not (count or has_left):
        return False
    from usb_proxy import reenumeration  # noqa: PLC0415

    is_back = reenumeration.settle(host, device)
    if has_left and is_back:
        count = min(count + 1, DEPARTURES)
        departures.remember(host, device.bus_id, device.identity(), count)
    return is_back


def _allow_in_usbguard(host: Host, device: UsbDevice) -> None:
    """Where usbguard decides about devices, tell it that this one is wanted."""
    if host.find_command("usbguard") is None:
        return
    # Not the port alone: another device may be in it by now.
    rule = f'id {device.product()} via-port "{device.bus_id}"'
    code, untrusted_errors = host.run(["usbguard", "allow-device", rule])
    if code and not device.is_authorized():
        said = printable(untrusted_errors) or f"exit code {code}"
        raise SystemLackError("UP-719", device=device.bus_id, said=said, rule=rule)
