# SPDX-License-Identifier: GPL-2.0-or-later
"""usb-export ARGUMENT: what `qubes.USB+ARGUMENT` runs in the backend, until the device is let go.

Its standard error reaches the frontend, so nothing in it may name another qube.
"""

from __future__ import annotations

from usb_proxy import endings, handshake, journal, locks, qrexec, suspend
from usb_proxy.backend import exports, qubesdb, udev, usage, usbip_host
from usb_proxy.errors import (
    InUseError,
    NoDeviceError,
    RequestError,
    SystemLackError,
    UsbProxyError,
)
from usb_proxy.idents import DomainName, Target, parse_target
from usb_proxy.uevents import Uevents

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from usb_proxy.host import Host
    from usb_proxy.sysfs import UsbDevice

EARLY_SECONDS = 5.0
"""A device that leaves so soon after it was handed over did so because of that. It leaves within a
second, but we notice after we have told dom0 of it."""

DEPARTURES = 3
"""How often a device may leave each time; one that leaves more often has another fault."""

REENUMERATES = "QUBES_USB_REENUMERATES"
"""The udev property of devices that leave the bus when their configuration is taken away."""

RESETS = "QUBES_USB_RESET"
"""The udev property of devices that have to be reset."""

EXPORTED = "QUBES_EXPORT_USB_DEVICE"
"""The udev property of the platform: `0` for a device that is not offered to other qubes."""

RESET_SECONDS = 20.0
"""The kernel resets one device after the other when many connections end at once."""

RESET_ON_ATTACH = "/run/qubes-service/usb-reset-on-attach"


def main(arguments: Sequence[str], host: Host) -> int:
    """Export the device that the service argument names to the qube that calls."""
    if len(arguments) != 2:
        raise RequestError("UP-219")
    began = suspend.now()
    target = parse_target(arguments[1])
    frontend = qrexec.remote_domain(host)
    entry = journal.Entry(host, target, frontend.owner, is_import=False)
    try:
        _serve(host, target, frontend, entry, began)
    except (UsbProxyError, OSError, MemoryError) as error:
        entry.failed(error)
        raise
    return 0


def _serve(
    host: Host, target: Target, frontend: DomainName, entry: journal.Entry, began: float
) -> None:
    """Export a device and give it back; `entry` tells the journal."""
    if not host.is_root():
        raise SystemLackError("UP-740")
    link = qrexec.Link(host)
    host.load_module(usbip_host.NAME, usbip_host.DRIVER)
    # A bus id is looked at when nobody else has it: the device may be on its way back.
    bus_id = entry.device = usbip_host.look_up(host, target)
    lock = locks.export_lock(host, bus_id)
    if refusal := exports.acquire(host, lock, bus_id):
        usbip_host.open_usable(host, bus_id, target).close()  # If it has gone, that is what counts.
        raise refusal
    with lock:
        suspend.check(host, began)
        with usbip_host.open_usable(host, bus_id, target) as device:
            _Loan(host, device, lock, link, entry).serve(frontend)


class _Loan:
    """One device that is lent to one qube: taken, handed over, given back as it was.

    `blocked` is whether it, or an interface of it, was not authorized before.
    """

    def __init__(
        self,
        host: Host,
        device: UsbDevice,
        lock: locks.Lock,
        link: qrexec.Link,
        entry: journal.Entry,
    ) -> None:
        self.host, self.device, self.lock, self.link, self.entry = host, device, lock, link, entry
        self.bus_id = device.bus_id
        self.blocked = exports.was_blocked(device, lock) or exports.denies_interface(host, device)
        self.properties: dict[str, str] = {}
        self.has_ended = self.has_gone = False

    def serve(self, frontend: DomainName) -> None:
        """Lend it until it is let go of, and tell the journal why it was."""
        host, device = self.host, self.device
        if usbip_host.is_in_use(device) and not self.lock.leftover:
            raise InUseError("UP-402", device=self.bus_id)
        if self.lock.leftover:
            endings.note_end(self.lock)
            # Now, as we may fail before we publish anything ourselves.
            qubesdb.unpublish(host, self.bus_id, True, qubesdb.DIED)
            endings.tell_of_death(host, self.lock)
        device.identity()  # As long as it is there.
        self.properties = udev.await_properties(host, device)
        self._require_permission(self.properties)
        self._note()
        try:
            self.lock.tell(frontend.owner)
            self._export(frontend)
        finally:
            # It is unbound before the connection ends, and that before it is reset (stub_dev.c).
            # What cannot be looked at is given back all the same.
            was_there, has_left, is_back = True, False, False
            try:
                was_there = usbip_host.is_held(device) and not self.has_gone
                has_left = not was_there and host.now() < self.link.sent_at + EARLY_SECONDS
                self._note(endings.ENDING)
            finally:
                is_back = self._end(was_there, has_left)
            self.lock.note("")
            if has_left and is_back:
                raise NoDeviceError("UP-309", device=self.bus_id)
        is_unplugged = not was_there or (self.has_gone and not is_back)
        why = journal.UNPLUGGED if is_unplugged else journal.DETACHED_THERE
        self.entry.detached(endings.why_stopped(host) or why)

    def _require_permission(self, properties: dict[str, str] | None) -> None:
        """NoDeviceError where a rule of udev says that the device is not lent."""
        if (properties or {}).get(EXPORTED) == "0":
            raise NoDeviceError("UP-310", device=self.bus_id)

    def _note(self, state: str = "") -> None:
        blocked = self.device if self.blocked else None
        self.lock.note(exports.note(self.host, blocked, state))

    def _export(self, frontend: DomainName) -> None:
        """Take the device, hand it over, and return when the connection has ended.

        Or the device has gone. usbip-host ends the connection then, but not if the thread that
        unbinds the device has got the address of a dead one of its own (usbip_event.c,
        usbip_in_eh).
        """
        self.entry.product = self.device.product()
        self.link.use_both_ways()
        with usage.Claim(self.host, self.device):
            line = self._prepare()
        self.link.send(line)
        usbip_host.hand_over(self.device, self.host.link)
        self.link.is_handed_over = True
        is_udev_late = self._is_udev_late()
        qubesdb.publish(self.host, self.bus_id, frontend)
        self._note(endings.ATTACHED)
        self.entry.attached()
        _load_what_the_end_needs()
        self._sleep(frontend, is_udev_late)
        self.has_ended = True

    def _prepare(self) -> bytes:
        """Take the device, and wait for it if it leaves the bus meanwhile or is known to do so.

        Gives the line that tells the other qube what it gets.
        """
        host, device = self.host, self.device
        count = exports.recall(host, self.bus_id, device.identity())
        if count is None:
            count = int(self.properties.get(REENUMERATES) == "1")
        if count:
            return self._take_when_back(count)
        try:
            is_reset = usbip_host.may_be_cut_off(device) and not host.exists(exports.KEEP_UNBOUND)
            usbip_host.take(host, device)
            if is_reset or self.properties.get(RESETS) == "1" or host.exists(RESET_ON_ATTACH):
                device.reset()
            return self._offer()
        except NoDeviceError:
            from usb_proxy.backend import reenumeration  # noqa: PLC0415

            if not reenumeration.leaves(host, device):
                raise
        return self._take_when_back(0)

    def _take_when_back(self, count: int) -> bytes:
        from usb_proxy.backend import reenumeration  # noqa: PLC0415 (most devices do without its import)

        count = reenumeration.take(self.host, self.device, count, self.blocked)
        exports.remember(self.host, self.bus_id, self.device.identity(), count)
        # It may be another one for udev than the one that left.
        self._require_permission(udev.properties(self.host, self.device))
        return self._offer()

    def _offer(self) -> bytes:
        """Have a device authorized that usbip-host has, and say what it is."""
        if not self.device.is_authorized():
            from usb_proxy.backend import authorization  # noqa: PLC0415

            if not self.blocked:
                # It was not before it left, and usbguard has decided anew.
                self.blocked = True
                self._note()
            authorization.grant(self.host, self.device)
        return handshake.encode(self.device.devid(), self.device.attribute("speed"))

    def _sleep(self, frontend: DomainName, is_late: bool) -> None:
        """Return when the connection has ended or the device has gone; no other event wakes.

        If udev `is_late`, what was published before it has noticed the device may go with the one
        that was there before.
        """
        with Uevents() as events:
            if not is_late:
                self._hear_of_removal_only(events)
            while self.device.is_plugged():
                if is_late and not self._is_udev_late():
                    # It has told dom0 just now of a device that is connected to no qube.
                    is_late = False
                    self._require_permission(udev.properties(self.host, self.device))
                    qubesdb.publish(self.host, self.bus_id, frontend)
                    self._hear_of_removal_only(events)
                if self.link.await_end(events.fileno()):
                    return
                events.pending()
            # Its driver may be seen for a moment yet (drivers/base/core.c, device_del).
            self.has_gone = True

    def _is_udev_late(self) -> bool:
        try:
            return udev.properties(self.host, self.device) is None
        except NoDeviceError:
            return False

    def _hear_of_removal_only(self, events: Uevents) -> None:
        events.hear_only("remove@" + self.device.path().removeprefix("/sys"))

    def _end(self, was_there: bool, has_left: bool) -> bool:
        """End the connection if it is there, and give the device back; dom0 is told at once.

        `has_left` means that it left the bus soon after it was handed over. If it was not
        unplugged, but comes back, that is remembered. Gives whether it was waited for and is there
        again.
        """
        host, device = self.host, self.device
        try:
            if self.link.is_handed_over:
                is_asked = host.is_told_to_end() or (self.has_ended and not host.stopped_by)
                why = qubesdb.DETACHED if is_asked else qubesdb.DIED
                qubesdb.unpublish(host, self.bus_id, device.is_plugged(), why)
        finally:
            port = None
            try:
                if host.stopped_by and host.exists(exports.KEEP_UNBOUND) and was_there:
                    from usb_proxy.backend import reenumeration  # noqa: PLC0415

                    port = reenumeration.release_shut(host, device)
            finally:
                if self.link.is_handed_over:
                    self.link.end(host.now() + RESET_SECONDS)
                # A request may fail, and so end the connection, before a pull is seen.
                self.has_gone |= not device.is_plugged()
                exports.give_back(host, device, self.blocked)
                if port is not None:
                    port.release()
        count = exports.recall(host, self.bus_id, device.identity()) or 0
        if not (count or has_left):
            return False
        from usb_proxy.backend import reenumeration  # noqa: PLC0415

        is_back = reenumeration.settle(host, device)
        if has_left and is_back:
            count = min(count + 1, DEPARTURES)
            exports.remember(host, self.bus_id, device.identity(), count)
        return is_back


def _load_what_the_end_needs() -> None:
    """Load what may be needed in days, when these files may be another version's."""
    from usb_proxy import catalogue  # noqa: F401, PLC0415
    from usb_proxy.backend import authorization, reenumeration  # noqa: F401, PLC0415
