# SPDX-License-Identifier: GPL-2.0-or-later
"""Buses of vhci-hcd at which no interface gets a driver that was not announced.

The kernel gives an interface a driver only when it is authorized
(Documentation/usb/authorization.rst, "Interface authorization"); on a bus whose
`interface_authorized_default` is 0 that is ours to say. That switch is one for the whole bus: so
what others plug in there is authorized by a udev rule, which leaves alone what is *claimed* here.
All is files in root's own folder, so that it is found again after a death:
`gate-usbBUS` while the switch is ours, `announced-BUSID` for each device that is judged.
"""

from __future__ import annotations

from usb_proxy import locks
from usb_proxy.errors import NoDeviceError, SystemLackError, UsbProxyError, reason
from usb_proxy.idents import BusId
from usb_proxy.sysfs import DEVICES, UsbDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from usb_proxy.host import Host

GATE = "gate-usb"
CLAIM = "announced-"
LOCK = "bus-usb"
PROBE = "/sys/bus/usb/drivers_probe"
LOCK_SECONDS = 10.0


def claim(host: Host, bus_id: str, attachment: str) -> None:
    """Keep drivers from what comes to a port of this qube, for an attachment.

    SystemLackError when the kernel's file cannot be written.
    """
    with _lock(host, _bus(bus_id)):
        _write(host, CLAIM + bus_id, attachment)
        _close(host, _bus(bus_id))


def withdraw(host: Host, bus_id: str, attachment: str) -> None:
    """Remove the claim of an attachment on a port, if any, and open the bus if it was the last.

    SystemLackError when the kernel's file cannot be written.
    """
    if not _is_claimed(host, bus_id):
        return
    with _lock(host, _bus(bus_id)):
        # Another one may have claimed the port meanwhile.
        if claims(host).get(bus_id) == attachment:
            host.remove(f"{locks.LOCKS}/{CLAIM}{bus_id}")
        _open_if_free(host, _bus(bus_id))


def _is_claimed(host: Host, bus_id: str) -> bool:
    return host.exists(f"{locks.LOCKS}/{CLAIM}{bus_id}")


def withdraw_all(host: Host, attachment: str) -> None:
    """Withdraw what a dead importer of this attachment has claimed; its lock must be held."""
    for bus_id, claimed_for in claims(host).items():
        if claimed_for == attachment:
            withdraw(host, bus_id, attachment)


def repair(host: Host) -> list[Exception]:
    """Withdraw the claims of dead importers but for what is still there; open buses without any.

    Whatever fails keeps no other bus from that; gives all failures.
    """
    failures: list[Exception] = []
    buses = {_bus(bus_id) for bus_id in claims(host)}
    for name in host.listing(locks.LOCKS):
        bus = name.removeprefix(GATE).removeprefix(LOCK).removesuffix(".lock")
        if bus != name and bus.isdigit():
            buses.add(bus)
    for bus in sorted(buses):
        try:
            with _lock(host, bus):
                _withdraw_dead(host, bus)
                _open_if_free(host, bus)
        except (UsbProxyError, OSError) as error:
            failures.append(error)
    return failures


def _withdraw_dead(host: Host, bus: str) -> None:
    """Whoever claims has the lock of its attachment, and writes under that of the bus."""
    for bus_id, attachment in claims(host).items():
        lock = locks.Lock(host, locks.IMPORT + attachment)
        if _bus(bus_id) == bus and not host.exists(f"{DEVICES}/{bus_id}") and lock.acquire(0):
            with lock:
                host.remove(f"{locks.LOCKS}/{CLAIM}{bus_id}")


def claims(host: Host) -> dict[str, str]:
    """All claims: the bus id in this qube, and the attachment that it is for."""
    found = {}
    for name in host.listing(locks.LOCKS):
        try:
            if name.startswith(CLAIM):
                found[name.removeprefix(CLAIM)] = host.read(f"{locks.LOCKS}/{name}").strip()
        except FileNotFoundError:
            pass  # It has been withdrawn meanwhile.
    return found


def unannounced(host: Host, device: UsbDevice) -> list[str]:
    """The interfaces of a device that have no driver because they were not announced."""
    return unauthorized(host, device) if _is_claimed(host, device.bus_id) else []


def unauthorized(host: Host, device: UsbDevice) -> list[str]:
    """The interfaces of a device that no driver may have."""
    found = []
    for name in host.listing(f"{DEVICES}/{device.bus_id}"):
        try:
            if ":" in name and device.attribute(f"{name}/authorized") == "0":
                found.append(name)
        except UsbProxyError:
            pass  # It has gone, or the kernel has no such file.
    return found


def is_closed(host: Host, bus_id: str) -> bool:
    """Whether it is our doing that no driver looks at what comes to a port."""
    return host.exists(f"{locks.LOCKS}/{GATE}{_bus(bus_id)}")


def authorize(
    host: Host, device: UsbDevice, interfaces: list[str], is_over: Callable[[], bool] = bool
) -> None:
    """Let drivers have interfaces, and look for some; nothing for one that has just gone.

    All of them first: a driver may claim another interface beside that which it is offered, as
    network cards and modems have it (drivers/usb/core/driver.c, usb_driver_claim_interface). A
    driver may need long for each: no further one is asked for once it `is_over`.
    """
    fresh = [name for name in unauthorized(host, device) if name in interfaces]
    for name in fresh:
        try:
            device.write(f"{name}/authorized", "1", "authorize")
        except UsbProxyError:
            if name in unauthorized(host, device):
                raise
    for number, name in enumerate(fresh):
        if number and is_over():
            return
        try:
            host.write(PROBE, name)
        except OSError:
            pass  # A driver failed, as the kernel's log tells, or it has gone.


def _lock(host: Host, bus: str) -> locks.Lock:
    """Whoever changes a bus has it alone."""
    lock = locks.Lock(host, LOCK + bus)
    if not lock.acquire(LOCK_SECONDS):
        raise SystemLackError("UP-755", bus=bus)
    return lock


def _bus(bus_id: str) -> str:
    return bus_id.partition("-")[0]


def _switch(bus: str) -> str:
    """The kernel's file that says whether interfaces of a bus are authorized by default."""
    return f"{DEVICES}/usb{bus}/interface_authorized_default"


def _close(host: Host, bus: str) -> None:
    """Authorize no interface of a bus by default, and note that if it is our doing."""
    switch = _switch(bus)
    try:
        if host.read(switch).strip() != "0":
            _write(host, GATE + bus, "")
            host.write(switch, "0")
    except OSError as error:
        raise SystemLackError("UP-756", path=switch, reason=reason(error)) from error


def _open_if_free(host: Host, bus: str) -> None:
    """Undo `_close` once nothing is claimed on the bus; all the same if vhci-hcd was unloaded.

    Authorizes what others plugged in meanwhile and udev has not seen yet.
    """
    gate = f"{locks.LOCKS}/{GATE}{bus}"
    names = host.listing(locks.LOCKS)
    if not host.exists(gate) or any(name.startswith(f"{CLAIM}{bus}-") for name in names):
        return
    switch = _switch(bus)
    try:
        if host.exists(switch):
            host.write(switch, "1")
        host.remove(gate)
        names = host.listing(DEVICES)
        for name in [name for name in names if name.startswith(f"{bus}-") and ":" not in name]:
            try:
                with UsbDevice(host, BusId(name)) as device:
                    authorize(host, device, unauthorized(host, device))
            except NoDeviceError:
                pass  # It has just gone.
    except OSError as error:
        raise SystemLackError("UP-756", path=switch, reason=reason(error)) from error


def _write(host: Host, name: str, text: str) -> None:
    host.make_file(f"{locks.LOCKS}/{name}", text)
