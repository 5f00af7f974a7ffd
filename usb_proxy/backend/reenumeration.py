# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices that leave the bus when their configuration is taken away, and come back.

Android's adbd does that to a phone with USB debugging when it is deconfigured, reset, or configured
once more. So such a device has to reach the frontend without a configuration: its port is claimed
while it is away, and the kernel configures nothing that appears in a claimed port
(drivers/usb/core/generic.c, usb_choose_configuration). The claim is on that port alone
(drivers/usb/core/hub.c, usb_hub_claim_port), and ends with this process, whatever ends that.
"""

from __future__ import annotations

import errno
import sys

from usb_proxy import sysfs
from usb_proxy.backend import udev, usbip_host
from usb_proxy.errors import InUseError, NoDeviceError, reason
from usb_proxy.host import POLLIN
from usb_proxy.kernel import USBDEVFS_CLAIM_PORT
from usb_proxy.sysfs import UsbDevice
from usb_proxy.uevents import Uevents

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from usb_proxy.host import Host
    from usb_proxy.idents import BusId

LEAVE_SECONDS = 1.0
"""How long after it was deconfigured a device may stay. Phones leave after 5-200 ms."""

RETURN_SECONDS = 8.0
"""How long it may be away. Phones need 0.2-1 s, and the kernel half a second more."""

TAKE_SECONDS = 10.0
"""After this it is not waited for once more. The frontend waits 30 s for its answer."""

SETTLE_SECONDS = 8.0
"""How long to look after a device that was given back. Phones need 1.4-3.3 s."""

QUIET_SECONDS = 0.5
"""A device that has not left the bus for so long is not about to."""


class Port:
    """A port, which is claimed or not; a context manager.

    In the end the kernel configures what is in the port, if that is authorized.
    """

    def __init__(self, host: Host, bus_id: BusId, hub: str) -> None:
        self._host, self._bus_id, self._hub_folder = host, bus_id, hub
        self._hub = -1

    def __enter__(self) -> Port:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        try:
            with UsbDevice(self._host, self._bus_id) as device:
                usbip_host.probe(self._host, device)
        except NoDeviceError:
            pass  # It comes later, or never.

    def claim(self) -> None:
        """Keep the kernel from configuring what appears in the port."""
        if self._hub >= 0:
            return
        try:
            self._hub = self._host.open_node(sysfs.node(self._host, self._hub_folder), writes=True)
            number = sysfs.port_number(self._bus_id).to_bytes(4, sys.byteorder)
            self._host.control(self._hub, USBDEVFS_CLAIM_PORT, number)
        except OSError as error:
            self.release()
            if error.errno == errno.EBUSY:
                raise InUseError("UP-406", device=self._bus_id) from error
            why = f"its hub: {reason(error)}"
            raise NoDeviceError("UP-302", device=self._bus_id, reason=why) from error

    def release(self) -> None:
        """Let it; when this returns, the kernel is done with all that appeared before.

        The hub is locked while either is done (drivers/usb/core/devio.c, usbdev_release).
        """
        if self._hub >= 0:
            self._host.close_all(self._hub)
            self._hub = -1


class _Watch(Uevents):
    """What happens at bus ids. Waits end with StoppedError at a stop signal, if `stoppable`."""

    def __init__(self, host: Host, bus_ids: Sequence[BusId], stoppable: bool) -> None:
        super().__init__()
        self._host, self._bus_ids, self._stoppable = host, bus_ids, stoppable

    def departure(self, device: UsbDevice, deadline: float) -> bool:
        """Sleep until a device has left the bus: False when it has not until `deadline`."""
        # Its files go before it is announced (drivers/base/core.c, device_del).
        while device.is_plugged():
            if not self._wait(deadline):
                return False
        return True

    def arrival(self, is_ready: Callable[[UsbDevice], bool], deadline: float) -> UsbDevice | None:
        """Sleep until a device is there and ready, and open it; None if it is not in time."""
        while True:
            for bus_id in self._bus_ids:
                try:
                    device = UsbDevice(self._host, bus_id)
                    try:
                        # One that is going is seen for a moment yet without its files.
                        if device.is_plugged() and is_ready(device):
                            return device
                    except BaseException:
                        device.close()
                        raise
                    device.close()
                except NoDeviceError:
                    pass
            if not self._wait(deadline):
                return None

    def _wait(self, deadline: float) -> bool:
        ready = self._host.wait({self.fileno(): POLLIN}, deadline, self._stoppable)
        self.pending()
        return bool(ready)


def leaves(host: Host, device: UsbDevice) -> bool:
    """Whether a device has left the bus, or is about to."""
    with _Watch(host, [device.bus_id], stoppable=True) as watch:
        return watch.departure(device, host.now() + LEAVE_SECONDS)


def take(host: Host, device: UsbDevice, departures: int, blocked: bool = False) -> int:
    """Move a device to usbip-host without a configuration: gives how often it leaves the bus.

    It may have gone already, and is expected to leave `departures` times after it was deconfigured.
    `device`, whose identity has been asked for, stands for what comes back from then on;
    NoDeviceError if that is another one, if it does not come, or does not stay. One that is to be
    `blocked` is given to no other driver but blocked.
    """
    if usbip_host.is_held(device):
        # It has claimed the port, too.
        usbip_host.give_back(host, device, keep_unbound=False, blocked=blocked)
    deadline = host.now() + TAKE_SECONDS
    left = due = 0
    place = Port(host, device.bus_id, device.hub())
    with _Watch(host, [device.bus_id], stoppable=True) as watch, place as port:
        while host.now() < deadline:
            try:
                port.claim()
                if device.is_configured():
                    device.write("bConfigurationValue", "-1", "deconfigure")
                    due = left + max(departures, 1)
                if left >= due or not watch.departure(device, host.now() + LEAVE_SECONDS):
                    port.release()
                    usbip_host.take(host, device)
                    if not device.is_configured():
                        break
                    # usbguard allowed it just now, and the kernel was faster.
                    usbip_host.give_back(host, device, keep_unbound=False, blocked=blocked)
                    continue
            except NoDeviceError:
                pass
            left += 1
            _await_return(host, watch, port, device, blocked)
        else:
            raise NoDeviceError("UP-308", device=device.bus_id)
    # One that had no configuration had no reason to leave.
    return left if left or due else departures


def settle(host: Host, device: UsbDevice) -> bool:
    """Return once what was given back stays on the bus with its driver, or does not come back.

    Gives whether it is the same device.
    """
    deadline = host.now() + SETTLE_SECONDS
    with _Watch(host, [device.bus_id], stoppable=False) as watch:
        while fresh := watch.arrival(UsbDevice.is_settled, deadline):
            with fresh:
                if not watch.departure(fresh, host.now() + QUIET_SECONDS):
                    return _ask(host, device.bus_id, UsbDevice.identity) == device.identity()
    return False


def release_shut(host: Host, device: UsbDevice) -> Port:
    """Take a device from usbip-host in the middle of its session, and block it in a shut port.

    So it is not reset: one that is back before the kernel gives that up is configured at once, and
    nobody can claim the port in between (drivers/usb/core/hub.c, hub_port_connect). Gives the port,
    for when all is over.
    """
    port = Port(host, device.bus_id, device.hub())
    try:
        device.write("driver/unbind", device.bus_id, "release")
        _claim_all([port])
        device.write("authorized", "0", "release")
    except NoDeviceError:
        pass  # It has left already.
    return port


def shut(host: Host, device: UsbDevice, keep_unbound: bool) -> None:
    """Keep the port of a device shut that was given back, blocked, until it rests or is pulled.

    It may leave the bus because it was reset or deconfigured, and come back as whatever it was made
    by the other qube: that is blocked before any driver has looked at it, also at the other port of
    the socket. One that stays away for `RETURN_SECONDS` counts as pulled, as one that leaves later.
    """
    hubs, peer = {device.bus_id: device.hub()}, device.peer()
    if peer is not None and not host.exists(f"{sysfs.DEVICES}/{peer}"):
        hubs[peer] = f"{device.port()}/peer/../.."
    bus_ids = list(hubs)
    ports = [Port(host, bus_id, hub) for bus_id, hub in hubs.items()]

    def is_loose(fresh: UsbDevice) -> bool:
        is_bound = keep_unbound and fresh.driver() is not None
        return is_bound or (fresh.is_authorized() and fresh.is_probed())

    deadline = host.now() + TAKE_SECONDS
    with _Watch(host, bus_ids, stoppable=False) as watch:
        try:
            while host.now() < deadline:
                _claim_all(ports)
                before = _numbers(host, bus_ids)
                seconds = LEAVE_SECONDS if any(before) else RETURN_SECONDS
                fresh = watch.arrival(is_loose, host.now() + seconds)
                if fresh is not None:
                    with fresh:
                        _block(fresh, keep_unbound)
                elif _numbers(host, bus_ids) == before:
                    return
        finally:
            for port in ports:
                port.release()


def _claim_all(ports: Sequence[Port]) -> None:
    for port in ports:
        try:
            port.claim()
        except (InUseError, NoDeviceError):
            pass  # Its hub has gone with all that was there, or somebody else keeps it shut.


def _block(device: UsbDevice, keep_unbound: bool) -> None:
    try:
        device.write("authorized", "0", "block")
        if keep_unbound and device.driver() is not None:
            device.write("driver/unbind", device.bus_id, "block")
    except NoDeviceError:
        pass  # It has left once more.


def _await_return(host: Host, watch: _Watch, port: Port, device: UsbDevice, blocked: bool) -> None:
    """Wait for a device that leaves, and let `device` stand for what comes back."""
    bus_id, identity = device.bus_id, device.identity()
    deadline = host.now() + RETURN_SECONDS
    fresh = None
    if watch.departure(device, deadline):
        usbip_host.give_back(host, device, keep_unbound=False)  # Frees the slot of its name.
        port.claim()
        fresh = watch.arrival(UsbDevice.is_probed, deadline)
    if fresh is None:
        peer = device.peer()
        if peer is not None and _ask(host, peer, UsbDevice.identity) == identity:
            raise NoDeviceError("UP-307", device=bus_id, peer=peer)
        raise NoDeviceError("UP-305", device=bus_id, seconds=RETURN_SECONDS)
    device.become(fresh)
    if blocked and device.is_authorized():
        device.write("authorized", "0", "block")
    if device.identity() != identity:
        failure = NoDeviceError("UP-306", device=bus_id)
        failure.aside = f"the other one is {device.identity()}"
        raise failure
    # udev tells dom0 that it left and came back: before we tell what becomes of it, if it can.
    udev.await_properties(host, device)


def _numbers(host: Host, bus_ids: Sequence[BusId]) -> list[object]:
    """What is there, as the kernel numbers it: what is back has another, driver or not."""
    return [_ask(host, bus_id, UsbDevice.devid) for bus_id in bus_ids]


def _ask(host: Host, bus_id: BusId, what: Callable[[UsbDevice], object]) -> object:
    try:
        with UsbDevice(host, bus_id) as device:
            return what(device)
    except NoDeviceError:
        return None
