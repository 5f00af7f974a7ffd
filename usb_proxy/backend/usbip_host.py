# SPDX-License-Identifier: GPL-2.0-or-later
"""The backend's kernel driver, usbip-host: take a device, hand it over, give it back."""

from __future__ import annotations

import errno

from usb_proxy import sockets
from usb_proxy.errors import NoDeviceError, RequestError, SystemLackError, UsbProxyError
from usb_proxy.idents import BusId, Target
from usb_proxy.kernel import PROBE, STUB_AVAILABLE, STUB_USED
from usb_proxy.sysfs import DEVICES, UsbDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usb_proxy.host import Host

NAME = "usbip-host"
DRIVER = f"/sys/bus/usb/drivers/{NAME}"


def is_held(device: UsbDevice) -> bool:
    """Whether usbip-host has this device."""
    return device.driver() == NAME


def is_in_use(device: UsbDevice) -> bool:
    """Whether usbip-host has this device in a session, whoever started that."""
    return is_held(device) and device.number("usbip_status") != STUB_AVAILABLE


def may_be_cut_off(device: UsbDevice) -> bool:
    """Whether a device is with none of its drivers, so that a session may have been cut off.

    It is not reset then, and may wait for the rest of a transfer: no reset of the frontend's
    reaches it (drivers/usb/usbip/vhci_hcd.c, vhci_hub_control).
    """
    return device.driver() in (None, NAME)


def take(host: Host, device: UsbDevice) -> None:
    """Move a device from its driver to usbip-host, with no session; also one left there before.

    NoDeviceError when it goes away meanwhile, SystemLackError when the kernel refuses.
    """
    try:
        _take(host, device)
    except NoDeviceError:
        # Drivers go by names: what is in its port by now may have been taken in its place.
        try:
            with UsbDevice(host, device.bus_id) as successor:
                give_back(host, successor, keep_unbound=False)
        except NoDeviceError:
            pass
        raise


def _take(host: Host, device: UsbDevice) -> None:
    try:
        # No line's end: it would become part of the name (stub_main.c, match_busid_store).
        host.write(f"{DRIVER}/match_busid", f"add {device.bus_id}")
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise device.failure("register", error) from error
        raise SystemLackError("UP-711", device=device.bus_id) from error
    if device.driver() is not None:
        device.write("driver/unbind", device.bus_id, "take")
    try:
        host.write(f"{DRIVER}/bind", device.bus_id)
    except OSError as error:
        raise device.failure("take", error) from error
    if device.driver() != NAME or device.number("usbip_status") != STUB_AVAILABLE:
        raise NoDeviceError("UP-302", device=device.bus_id, reason="while usbip-host took it")
    _pin(device)


def hand_over(device: UsbDevice, fd: int) -> None:
    """Start a session over the stream socket `fd`, which the kernel keeps from here on."""
    device.write("usbip_sockfd", str(fd), "hand over")


def give_back(host: Host, device: UsbDevice, keep_unbound: bool, blocked: bool = False) -> bool:
    """Return a device to its usual driver, ready when this returns; all the same if it has gone.

    It is `blocked` from then on, as it was before, and never allowed without usbip-host.
    With `keep_unbound` it has no driver, either, so that none looks at it until it is plugged in
    again. Gives whether it is still there, and what it was.
    """
    is_same = _withdraw(device, keep_unbound, blocked)
    try:
        if device.is_pinned:
            _free_name(host, device)
            if keep_unbound and device.driver() is not None:
                device.write("driver/unbind", device.bus_id, "give back")
        elif device.is_plugged() and not keep_unbound:
            probe(host, device)
    except NoDeviceError:
        pass
    except OSError as error:
        if device.is_plugged():
            raise device.failure("give back", error) from error
    return is_same and device.is_plugged()


def _free_name(host: Host, device: UsbDevice) -> None:
    """Free the slot of a device's name. There is no other way (stub_main.c, rebind_store).

    It uses the device that was bound last under that name, and its hub, present or not: hence the
    pins. A driver that was unloaded has no names, and has given all devices back (usbip_host_exit).
    """
    try:
        host.write(f"{DRIVER}/rebind", device.bus_id)
    except FileNotFoundError:
        pass


def _may_be_held(device: UsbDevice) -> bool:
    """Whether usbip-host has this device, or had it last if that cannot be looked at."""
    try:
        return is_held(device)
    except SystemLackError:
        if not device.is_pinned:
            raise
        return True


def probe(host: Host, device: UsbDevice) -> None:
    """Have the kernel look for a driver and a configuration, where a device lacks one of them."""
    driver = device.driver()
    if driver not in (None, NAME) and device.is_authorized() and not device.is_configured():
        device.write("driver/unbind", device.bus_id, "give back")
        driver = None
    if driver is None:
        try:
            host.write(PROBE, device.bus_id)
        except OSError as error:
            raise device.failure("give back", error) from error


def _pin(device: UsbDevice) -> None:
    """Prepare for `rebind`; without usbfs the name just keeps its slot until the next boot."""
    try:
        device.pin()
    except OSError:
        pass


def _withdraw(device: UsbDevice, keep_unbound: bool, blocked: bool) -> bool:
    """Take a device from usbip-host: False where it has gone, or comes back as another one."""
    try:
        if _may_be_held(device):
            _pin(device)
            if _release(device, keep_unbound or blocked) and not keep_unbound:
                device.reset()
        elif blocked and device.is_authorized():
            # Somebody else has taken it from usbip-host, or unloaded that.
            device.write("authorized", "0", "give back")
    except NoDeviceError:
        return False
    return True


def _release(device: UsbDevice, block: bool) -> bool:
    """Unbind a device from usbip-host, once the kernel has reset it after its session.

    Unbinding during the reset makes it fail after a second (usb_lock_device_for_reset). Nothing
    announces its end, but usbip-host holds one lock from the session's end to it, and takes that
    same lock for a new socket (usbip_event.c, event_handler; stub_dev.c, usbip_sockfd_store).
    So offer it a socket of our own: when that returns the reset is over, and unbinding ends the
    idle session without another. Gives whether a session was cut off instead.
    """
    is_refused = False
    ends: tuple[sockets.Socket, ...] = ()
    try:
        try:
            ends = sockets.pair()
            device.write("usbip_sockfd", str(ends[1].fileno()), "release")
        except (OSError, UsbProxyError):
            # The reset failed, a dead exporter's session runs, or no more files can be opened but
            # in these two's place. Unbinding ends a session all the same, and tells if it fails.
            for end in ends:
                end.close()
            is_refused = True
        if block:
            device.write("authorized", "0", "release")
        is_cut_off = is_refused and device.number("usbip_status") == STUB_USED
        device.write("driver/unbind", device.bus_id, "release")
    finally:
        for end in ends:
            end.close()
    return is_cut_off


def look_up(host: Host, target: Target) -> BusId:
    """The bus id that `target` names; that it may be used is for `open_usable` to say.

    RequestError when several devices match vendor and product, NoDeviceError when none does.
    """
    if isinstance(target, BusId):
        return target
    found = []
    for name in host.listing(DEVICES):
        if name.startswith("usb") or ":" in name:
            continue
        try:
            with UsbDevice(host, BusId(name)) as device:
                if device.matches(target) and not device.refusal():
                    found.append(device.bus_id)
        except NoDeviceError:
            continue
    if len(found) > 1:
        raise RequestError("UP-208", target=target, devices=" and ".join(found))
    if not found:
        raise NoDeviceError("UP-301", target=target)
    return found[0]


def open_usable(host: Host, bus_id: BusId, target: Target) -> UsbDevice:
    """The device of a bus id, open, if it may be exported or reset and still is what was asked for.

    RequestError for a hub and for a device that came from another qube, NoDeviceError else.
    """
    device = UsbDevice(host, bus_id)
    try:
        refusal = device.refusal()
        if refusal:
            raise refusal
        if not device.matches(target):
            raise NoDeviceError("UP-304", target=target)
    except BaseException:
        device.close()
        raise
    return device
