# SPDX-License-Identifier: GPL-2.0-or-later
"""Buses of vhci-hcd at which no interface gets a driver that was not announced.

The kernel gives an interface a driver only when it is authorized
(Documentation/usb/authorization.rst, "Interface authorization"); on a bus whose
`interface_authorized_default` is 0 that is ours to say. That switch is one for the whole bus: so
what others plug in there is authorized by a udev rule, which leaves alone what is *claimed* here.

Some devices are *covered*: all their configurations were announced. A program may take interfaces
as soon as it has chosen a configuration, as usbmuxd does, so the kernel authorizes them. While all
claimed devices of a bus are covered, that bus is closed for devices instead (`authorized_default`):
what one of them becomes when it is reset is a new device, and waits to be judged.

All is files in root's own folder, so that it is found again after a death: `gate-usbBUS` while
that bus is ours, `devices-usbBUS` while it is closed for devices, and for each device that is
judged `announced-BUSID`: its attachment, and its number if it is covered.
"""

from __future__ import annotations

from usb_proxy import locks
from usb_proxy.errors import NoDeviceError, SystemLackError, UsbProxyError, reason
from usb_proxy.frontend import claims
from usb_proxy.idents import BusId
from usb_proxy.kernel import PROBE
from usb_proxy.sysfs import DEVICES, UsbDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from usb_proxy.host import Host

GATE = "gate-usb"
DEVICES_GATE = "devices-usb"
LOCK = "bus-usb"
USBGUARD = "usbguard"
LOCK_SECONDS = 10.0


def claim(host: Host, bus_id: str, attachment: str) -> None:
    """Keep drivers from what comes to a port of this qube, for an attachment.

    SystemLackError when the kernel's file cannot be written.
    """
    with _lock(host, _bus(bus_id)):
        _write(host, claims.CLAIM + bus_id, attachment)
        _close(host, _bus(bus_id))


def withdraw(host: Host, bus_id: str, attachment: str) -> None:
    """Remove the claim of an attachment on a port, if any, and open the bus if it was the last.

    SystemLackError when the kernel's file cannot be written.
    """
    if not claims.is_claimed(host, bus_id):
        return
    with _lock(host, _bus(bus_id)):
        # Another one may have claimed the port meanwhile.
        if claims.attachments(host).get(bus_id) == attachment:
            _remove(host, bus_id)


def cover(host: Host, bus_id: str, attachment: str, number: str, is_several: bool) -> None:
    """Note that all configurations of a claimed device were announced; are there several?

    SystemLackError when the kernel's file cannot be written.
    """
    bus = _bus(bus_id)
    _write(host, claims.CLAIM + bus_id, f"{attachment} {number}{claims.SEVERAL * is_several}")
    if is_several or len(claims.on(host, bus)) > 1:
        with _lock(host, bus):
            _close_for_devices(host, bus)


def let_in(host: Host, device: UsbDevice, attachment: str) -> None:
    """Have a device judged like any other that came to a port of a bus closed for devices.

    Not one that the administrator or usbguard keeps out.
    """
    bus = _bus(device.bus_id)
    with _lock(host, bus):
        _write(host, claims.CLAIM + device.bus_id, attachment)
        _close(host, bus)
        if _is_ours_to_say(host, bus):
            device.write("authorized", "1", "authorize")


def withdraw_all(host: Host, attachment: str) -> None:
    """Withdraw what a dead importer of this attachment has claimed; its lock must be held."""
    for bus_id, claimed_for in claims.attachments(host).items():
        if claimed_for == attachment:
            withdraw(host, bus_id, attachment)


def repair(host: Host) -> list[Exception]:
    """Withdraw the claims of dead importers but for what is still there; open buses without any.

    Whatever fails keeps no other bus from that; gives all failures.
    """
    failures: list[Exception] = []
    buses = {_bus(bus_id) for bus_id in claims.attachments(host)}
    for name in host.listing(locks.LOCKS):
        bus = name.removeprefix(GATE).removeprefix(LOCK).removesuffix(".lock")
        if bus != name and bus.isdigit():
            buses.add(bus)
    for bus in sorted(buses):
        try:
            with _lock(host, bus):
                _withdraw_dead(host, bus)
                if claims.on(host, bus):
                    _close_for_devices(host, bus)
                else:
                    _open(host, bus)
        except (UsbProxyError, OSError) as error:
            failures.append(error)
    return failures


def tidy(host: Host) -> None:
    """Remove the locks of buses whose holders died while they gave them up."""
    for file in host.listing(locks.LOCKS):
        if file.startswith(LOCK):
            lock = locks.Lock(host, file.removesuffix(".lock"))
            if lock.acquire(0):
                with lock:
                    pass


def _withdraw_dead(host: Host, bus: str) -> None:
    """Whoever claims has the lock of its attachment, and writes under that of the bus."""
    for bus_id, attachment in claims.attachments(host).items():
        lock = locks.Lock(host, locks.IMPORT + attachment)
        if _bus(bus_id) == bus and not host.exists(f"{DEVICES}/{bus_id}") and lock.acquire(0):
            with lock:
                _remove(host, bus_id)


def _remove(host: Host, bus_id: str) -> None:
    """Remove a claim. The last one opens its bus first: after a death it is what is found."""
    bus = _bus(bus_id)
    is_last = len(claims.on(host, bus)) == 1
    if is_last:
        _open(host, bus)
    host.remove(f"{locks.LOCKS}/{claims.CLAIM}{bus_id}")
    if not is_last:
        _close_for_devices(host, bus)


def unannounced(host: Host, device: UsbDevice) -> list[str]:
    """The interfaces of a device that have no driver because they were not announced."""
    return device.unauthorized() if claims.is_claimed(host, device.bus_id) else []


def is_closed(host: Host, bus_id: str) -> bool:
    """Whether it is our doing that no driver looks at what comes to a port."""
    return host.exists(f"{locks.LOCKS}/{GATE}{_bus(bus_id)}")


def is_closed_for_devices(host: Host, bus: str) -> bool:
    """Whether it is our doing that the kernel configures nothing new on a bus."""
    return host.exists(f"{locks.LOCKS}/{DEVICES_GATE}{bus}")


def authorize(
    host: Host, device: UsbDevice, interfaces: list[str], is_over: Callable[[], bool] = bool
) -> None:
    """Let drivers have interfaces, and look for some; nothing for one that has just gone.

    All of them first: a driver may claim another interface beside that which it is offered, as
    network cards and modems have it (drivers/usb/core/driver.c, usb_driver_claim_interface). A
    driver may need long for each: no further one is asked for once it `is_over`.
    """
    fresh = [name for name in device.unauthorized() if name in interfaces]
    for name in fresh:
        try:
            device.write(f"{name}/authorized", "1", "authorize")
        except UsbProxyError:
            if name in device.unauthorized():
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
    if not lock.acquire(LOCK_SECONDS, passes=True):
        raise SystemLackError("UP-755", bus=bus)
    return lock


def _bus(bus_id: str) -> str:
    return bus_id.partition("-")[0]


def _switch(bus: str, kind: str = "interface_") -> str:
    """The kernel's file that says whether interfaces, or devices, are authorized by default."""
    return f"{DEVICES}/usb{bus}/{kind}authorized_default"


def _close(host: Host, bus: str) -> None:
    """Authorize no interface of a bus by default, and note that if it is our doing."""
    switch = _switch(bus)
    try:
        if host.read(switch).strip() != "0":
            _write(host, GATE + bus, "")
            host.write(switch, "0")
        _open_for_devices(host, bus)
    except OSError as error:
        raise SystemLackError("UP-756", path=switch, reason=reason(error)) from error


def _close_for_devices(host: Host, bus: str) -> None:
    """Authorize interfaces of a bus by default, but no new device, if that helps one there."""
    switch, claimed = _switch(bus, ""), claims.on(host, bus)
    is_several = any(noted.endswith(claims.SEVERAL) for noted in claimed.values())
    if not is_several or not claims.are_covered(host, claimed) or not is_closed(host, bus):
        return
    try:
        if not is_closed_for_devices(host, bus):
            if not _is_ours_to_say(host, bus):
                return
            _write(host, DEVICES_GATE + bus, "")
            host.write(switch, "0")
        # One that came before that is found out, and one that comes later waits.
        if claims.are_covered(host, claimed):
            host.write(_switch(bus), "1")
    except OSError as error:
        raise SystemLackError("UP-756", path=switch, reason=reason(error)) from error


def _is_ours_to_say(host: Host, bus: str) -> bool:
    """Whether neither the administrator nor usbguard says which devices of a bus are authorized."""
    switch = _switch(bus, "")
    try:
        return host.read(switch).strip() == "1" and not host.find_command(USBGUARD)
    except OSError as error:
        raise SystemLackError("UP-756", path=switch, reason=reason(error)) from error


def _open_for_devices(host: Host, bus: str) -> None:
    """Undo that, once no interface is authorized by default, or nothing is claimed.

    What others plugged in meanwhile, and udev has not seen yet, is authorized. One that came to a
    claimed port waits for whoever has claimed that.
    """
    if not is_closed_for_devices(host, bus):
        return
    _switch_on(host, _switch(bus, ""))
    host.remove(f"{locks.LOCKS}/{DEVICES_GATE}{bus}")

    def allow(device: UsbDevice) -> None:
        if not device.is_authorized():
            device.write("authorized", "1", "authorize")

    _for_others(host, bus, allow)


def _for_others(host: Host, bus: str, act: Callable[[UsbDevice], None]) -> None:
    """Do something with each device in a port of a bus that nobody has claimed."""
    claimed = claims.on(host, bus)
    for name in host.listing(DEVICES):
        if name.startswith(f"{bus}-") and ":" not in name and name not in claimed:
            try:
                with UsbDevice(host, BusId(name)) as device:
                    act(device)
            except NoDeviceError:
                pass  # It has just gone.


def _open(host: Host, bus: str) -> None:
    """Undo `_close`; authorize what others plugged in meanwhile and udev has not seen yet."""
    if is_closed(host, bus):
        _switch_on(host, _switch(bus))
        _open_for_devices(host, bus)
        host.remove(f"{locks.LOCKS}/{GATE}{bus}")
        _for_others(host, bus, lambda d: authorize(host, d, d.unauthorized()))


def _switch_on(host: Host, switch: str) -> None:
    """Authorize by default, if that is not so; all the same if vhci-hcd was unloaded."""
    try:
        if host.exists(switch) and host.read(switch).strip() != "1":
            host.write(switch, "1")
    except OSError as error:
        raise SystemLackError("UP-756", path=switch, reason=reason(error)) from error


def _write(host: Host, name: str, text: str) -> None:
    host.make_file(f"{locks.LOCKS}/{name}", text)
