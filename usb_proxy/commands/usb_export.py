# SPDX-License-Identifier: GPL-2.0-or-later
"""usb-export ARGUMENT: what `qubes.USB+ARGUMENT` runs in the backend, until the device is let go.

Its standard error reaches the frontend, so nothing in it may name another qube.
"""

from __future__ import annotations

import posix as os

from usb_proxy import handshake, journal, leftovers, qrexec, qubesdb, runstate, sysfs, usbip_host
from usb_proxy.errors import (
    InUseError,
    NoDeviceError,
    RequestError,
    SystemLackError,
    UsbProxyError,
    printable,
)
from usb_proxy.idents import DomainName, Target, parse_target
from usb_proxy.sysfs import UsbDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from usb_proxy.host import Host

LOCK_SECONDS = 5.0
"""An exporter that is giving the device back needs less than half a second."""

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
    bus_id = entry.device = sysfs.find(host, target)
    lock = runstate.export_lock(host, bus_id)
    if not lock.acquire(LOCK_SECONDS):
        raise InUseError("UP-401", device=bus_id)
    with lock, UsbDevice(host, bus_id) as device:
        if not device.matches(target):
            raise NoDeviceError("UP-304", target=target)
        if usbip_host.is_in_use(device) and not lock.leftover:
            raise InUseError("UP-402", device=bus_id)
        leftovers.tell_of_death(host, lock)
        lock.note(str(os.getpid()))
        try:
            lock.tell(frontend.owner)
            _export(host, device, frontend, link, entry)
        finally:
            _end(host, device, link)
            lock.note("")
        why = journal.DETACHED_THERE if device.is_plugged() else journal.UNPLUGGED
        entry.detached(leftovers.why_stopped(host) or why)


def _export(
    host: Host,
    device: UsbDevice,
    frontend: DomainName,
    link: qrexec.Link,
    entry: journal.Attachment,
) -> None:
    """Take the device, hand it over, and return when the connection has ended."""
    entry.product = device.product()
    link.use_both_ways()
    usbip_host.take(host, device)
    if device.property("QUBES_USB_RESET") == "1" or host.exists(RESET_ON_ATTACH):
        device.reset()
    _allow_in_usbguard(host, device)
    link.send(handshake.encode(device.devid(), device.attribute("speed")))
    usbip_host.hand_over(device, host.link)
    link.is_handed_over = True
    qubesdb.publish(host, device.bus_id, frontend)
    entry.attached()
    link.await_end()


def _end(host: Host, device: UsbDevice, link: qrexec.Link) -> None:
    """End the connection if it is there, and give the device back; dom0 is told at once."""
    try:
        if link.is_handed_over:
            qubesdb.unpublish(host, device.bus_id)
    finally:
        if link.is_handed_over:
            link.end(host.now() + RESET_SECONDS)
        leftovers.give_back(host, device)


def _allow_in_usbguard(host: Host, device: UsbDevice) -> None:
    """Where usbguard decides about devices, tell it that this one is wanted."""
    if host.find_command("usbguard") is None:
        return
    rule = f'via-port "{device.bus_id}"'
    code, untrusted_errors = host.run(["usbguard", "allow-device", rule])
    if code and not device.is_authorized():
        said = printable(untrusted_errors) or f"exit code {code}"
        raise SystemLackError("UP-719", device=device.bus_id, said=said, rule=rule)
