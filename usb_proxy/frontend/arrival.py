# SPDX-License-Identifier: GPL-2.0-or-later
"""What arrives is what was chosen: no driver gets an interface that was not announced.

dom0 announces what it showed and judged; `gates` keeps drivers from the rest.
"""

from __future__ import annotations

from usb_proxy.errors import ExitCode, NoDeviceError, PeerError
from usb_proxy.frontend import descriptors, gates, vhci
from usb_proxy.idents import Attachment, BusId
from usb_proxy.kernel import USB_CLASS_HUB, USB_DT_DEVICE_SIZE
from usb_proxy.sysfs import DEVICES, UsbDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from usb_proxy import journal
    from usb_proxy.frontend.vhci import Port
    from usb_proxy.host import Host
    from usb_proxy.idents import Announcement

ANY_INTERFACE = "/run/qubes-service/usb-proxy-any-interface"
"""With this qube service nothing is judged."""

WARNINGS_LIMIT = 16
"""A device that is another one after each reset must not fill the journal."""

KINDS_SHOWN = 8


class Judge:
    """Judges one device, wherever it is plugged in; without `announced` everything is right.

    `entry` is that of its attachment in the journal, which is warned of what was not announced.
    `is_needed` tells whether it judges, `product` what was announced, if anything was.
    """

    def __init__(self, host: Host, announced: Announcement | None, entry: journal.Entry) -> None:
        self._host = host
        self._announced = announced
        self._entry = entry
        self._warning: PeerError | None = None
        self.product = announced.product if announced else ""
        self._claimed = self._covered = ""
        self._told: set[str] = set()
        self.is_needed = announced is not None and not host.exists(ANY_INTERFACE)

    def expect(self, port: Port) -> None:
        """Keep drivers from what comes to this port of vhci-hcd, and from no other any more.

        Before the kernel is given the device.
        """
        if not self.is_needed:
            return
        self.forget()
        self._claimed = vhci.device_path(self._host, port).rpartition("/")[2]
        gates.claim(self._host, self._claimed, self._attachment())

    def _attachment(self) -> Attachment:
        return Attachment(f"{self._entry.peer}-{self._entry.device}")

    def forget(self) -> None:
        """The device has gone from its port: the bus is as it was before."""
        if self._claimed:
            gates.withdraw(self._host, self._claimed, self._attachment())
            self._claimed = self._covered = ""

    def judge(self, path: str, is_over: Callable[[], bool]) -> None:
        """Give drivers to the interfaces that were announced, and warn of others, each once.

        Of the device at this DEVPATH, until it `is_over`. PeerError if it is another device than
        was announced, if none of its interfaces was, or if it has gone. Where nothing is judged,
        all get drivers, also if the bus is closed for another device.
        """
        bus_id = BusId(path.rpartition("/")[2])
        if not (self.is_needed or gates.is_closed(self._host, bus_id)):
            return
        try:
            # What is read and what is authorized belong to the same device.
            with UsbDevice(self._host, bus_id) as device:
                if self.is_needed:
                    self._judge(device, is_over)
                else:
                    names = device.unauthorized()
                    gates.authorize(self._host, device, names, is_over)
        except NoDeviceError as error:
            raise PeerError("UP-615") from error

    def verdict(self) -> bytes:
        """What to report of a device that can be used: an exit code, and the warning behind it."""
        if self._warning is None:
            return bytes([ExitCode.OK])
        return bytes([ExitCode.WARNING]) + str(self._warning).encode("ascii", "replace")

    def judge_again(self, path: str, is_over: Callable[[], bool]) -> None:
        """The same, of what the device may have become; not while it is away or changing."""
        if not self.is_needed:
            return
        try:
            with UsbDevice(self._host, BusId(path.rpartition("/")[2])) as device:
                self._judge(device, is_over, is_attached=True)
        except NoDeviceError:
            pass  # What comes next is announced anew.

    def _judge(
        self, device: UsbDevice, is_over: Callable[[], bool], is_attached: bool = False
    ) -> None:
        announced = self._announced
        path = f"{DEVICES}/{device.bus_id}/descriptors"
        try:
            untrusted_descriptors = self._host.read_long(path, descriptors.LIMIT)
        except OSError as error:
            raise device.failure("look at", error) from error
        # They are its own: it is still there.
        came, configuration = device.product(), device.attribute("bConfigurationValue")
        try:
            everything = descriptors.interfaces(untrusted_descriptors, None)
            interfaces = descriptors.interfaces(untrusted_descriptors, int(configuration or 0))
        except ValueError:
            came += " with descriptors that make no sense"
            raise PeerError("UP-640", announced=announced, came=came) from None
        kinds = sorted(set().union(*(interfaces if configuration else everything).values()))
        classes = {untrusted_descriptors[4:5].hex(), *(kind[:2] for kind in kinds)}
        shown = " ".join([came, *kinds[:KINDS_SHOWN]])
        if announced is None or came != announced.product or USB_CLASS_HUB in classes:
            raise PeerError("UP-640", announced=announced, came=shown)
        if configuration or not self._let_in(device):
            is_several = untrusted_descriptors[USB_DT_DEVICE_SIZE - 1] > 1
            if is_several or is_attached:  # One with a single configuration is noted for others.
                self._cover(device, announced, set().union(*everything.values()), is_several)
        if not configuration:
            return  # It gets one, which is announced anew, or is of no use.
        allowed = {number for number, each in interfaces.items() if announced.covers(each)}
        if not allowed:
            raise PeerError("UP-641", announced=announced, came=shown)
        names = [f"{device.bus_id}:{configuration}.{number}" for number in sorted(allowed)]
        gates.authorize(self._host, device, names, is_over)
        others = {
            f"{configuration}.{number} ({' '.join(sorted(interfaces[number])[:KINDS_SHOWN])})"
            for number in interfaces.keys() - allowed
        }
        self._warn_of(others)

    def _cover(
        self, device: UsbDevice, announced: Announcement, kinds: set[str], is_several: bool
    ) -> None:
        """A program may take what it chooses at once: where all was announced, nothing waits."""
        is_hub_among = any(kind.startswith(USB_CLASS_HUB) for kind in kinds)
        number = device.attribute("devnum")
        if announced.covers(kinds) and not is_hub_among and number != self._covered:
            gates.cover(self._host, self._claimed, self._attachment(), number, is_several)
            self._covered = number

    def _let_in(self, device: UsbDevice) -> bool:
        """What was covered has become a new device, which waits: judge that as if just plugged in.

        Gives whether that is so.
        """
        is_new = self._covered not in ("", device.attribute("devnum"))
        if not is_new or device.is_authorized():
            return False
        self._covered = ""
        gates.let_in(self._host, device, self._attachment())
        return True

    def _warn_of(self, others: set[str]) -> None:
        fresh = sorted(others - self._told)
        if fresh and len(self._told) < WARNINGS_LIMIT:
            self._told |= others
            self._warning = PeerError("UP-642", interfaces=", ".join(fresh))
            self._entry.warned(self._warning)
