# SPDX-License-Identifier: GPL-2.0-or-later
"""The frontend's kernel sets a device up: until it is configured, and udev has announced it."""

from __future__ import annotations

from usb_proxy.errors import PeerError, SystemLackError
from usb_proxy.frontend import vhci
from usb_proxy.host import GLANCE_SECONDS, POLLIN, POLLRDHUP
from usb_proxy.kernel import AUTOPROBE
from usb_proxy.uevents import LOST, UDEV, Uevents

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from usb_proxy.host import Host
    from usb_proxy.qrexec import Link

    Judgement = Callable[[str, Callable[[], bool]], object]

ENUMERATE_SECONDS = 15.0
"""A device needs 0.3-0.7 s. A silent one blocks its half of the controller while we wait."""

TURN_SECONDS = 30.0
"""All devices of a full hub; one that comes and goes must not hold us for ever."""

QUIET_SECONDS = 30.0
"""Between two events of the device itself: drivers load firmware, and wait 5 s for each answer."""

WORK_SECONDS = 60.0
"""All that drivers may take until the kernel says that the device is bound (dd.c, really_probe)."""

SETTLE_SECONDS = 2.0
"""For udev, and for usbguard's word, once the kernel is done. udev may be waiting for us."""

SWITCH_SECONDS = 10.0
"""For a program that has taken away a configuration, to choose another: usbmuxd's rule of udev does
so, and starts the program that chooses."""

UDEV_RUNS = "/run/udev/control"


class Enumeration:
    """A device that was just plugged in at DEVPATH `path`; `events` listen since before that.

    PeerError from each wait when the connection `link` ends, or `asker` loses its reader: the
    write end of a pipe.
    """

    def __init__(
        self, host: Host, events: Uevents, path: str, link: Link, asker: int | None
    ) -> None:
        self._host, self._events, self._path = host, events, path
        self._product = ""
        self._link, self._asker = link.fileno(), asker
        self._announced: set[str] = set()
        self._had_interfaces = False
        self._waits = {events.fileno(): POLLIN, self._link: POLLRDHUP}
        if asker is not None:
            self._waits[asker] = 0

    def await_usable(self, limit: float, judge: Judgement, product: str = "") -> None:
        """Return when the kernel has configured the device, and udev announced its interfaces.

        Those that have a driver once `judge` has been called, with the device's DEVPATH and what
        ends its work; where udev says nothing, the kernel's word is enough. `product` is what the
        device is said to be, `VVVV:PPPP`, if that is known.
        PeerError when it is not bound by `limit`, SystemLackError when it got no configuration, was
        blocked, or was removed.
        """
        self._product = product or "VENDOR:PRODUCT"
        start = self._host.now()
        self._await_bind(limit)

        def is_over() -> bool:
            return self._is_over(start, min(start + WORK_SECONDS, limit))

        if not self._is_configured():
            is_switched = self._had_interfaces and self._read("authorized") != "0"
            if is_switched and self._is_there():
                judge(self._path, is_over)  # Whoever chooses may take its interfaces at once.
            seconds = SWITCH_SECONDS if is_switched else SETTLE_SECONDS
            if not self._await(self._is_configured, seconds):
                raise self._failure()
        judge(self._path, is_over)
        self._await(self._is_announced, SETTLE_SECONDS)
        if self._read("authorized") != "1":  # usbguard may decide while udev is waited for.
            self._news(self._host.now())  # Or it was pulled.
            raise self._failure()
        if not self._await(self._may_have_drivers, SETTLE_SECONDS):
            raise SystemLackError("UP-761", product=vhci.product(self._host, self._path))

    def _is_over(self, start: float, deadline: float) -> bool:
        """Never, but with an exception: between two drivers' work."""
        self._news(self._host.now() + GLANCE_SECONDS)
        if self._host.now() >= deadline:
            raise PeerError("UP-621", seconds=deadline - start)
        return False

    def _await(self, is_so: Callable[[], bool], seconds: float) -> bool:
        """Sleep until something is so, for a while: whether it is."""
        deadline = self._host.now() + seconds
        while not is_so():
            if (news := self._news(deadline)) is None:
                return is_so()
            deadline = self._unless_removed(news, deadline)
        return True

    def _unless_removed(self, news: list[str], deadline: float) -> float:
        """The same deadline, or an earlier one.

        A device that changes when it is reset comes again soon, one that somebody removes does not.
        """
        if f"remove@{self._path}" in news and not self._is_there():
            return min(deadline, self._host.now() + SETTLE_SECONDS)
        return deadline

    def _await_bind(self, limit: float) -> None:
        """Return when the device has its driver, which comes after those of its interfaces.

        The kernel sets up one device of a hub after the other: while others come, there is hope.
        """
        start = self._host.now()
        deadline = min(start + ENUMERATE_SECONDS, limit)
        hub = self._path.rpartition("/")[0] + "/"
        is_alive, has_drivers = False, True
        while (news := self._news(deadline)) is not None:
            if f"bind@{self._path}" in news:
                return
            if LOST in news and self._host.exists(f"/sys{self._path}/driver"):
                return
            now = self._host.now()
            places = [event.partition("@")[2] + "/" for event in news]
            if any(place.startswith(f"{self._path}/") for place in places):
                if not is_alive:
                    is_alive, has_drivers = True, self._text(AUTOPROBE) != "0"
                quiet = QUIET_SECONDS if has_drivers else SETTLE_SECONDS
                self._had_interfaces |= self._is_any_interface(places)
                deadline = min(now + quiet, start + WORK_SECONDS, limit)
            elif not is_alive and any(place.startswith(hub) for place in places):
                deadline = min(now + ENUMERATE_SECONDS, start + TURN_SECONDS, limit)
            deadline = self._unless_removed(news, deadline)
        if is_alive and not self._is_there():
            raise self._failure()
        if not has_drivers:
            raise SystemLackError("UP-762")
        if is_alive:
            raise PeerError("UP-621", seconds=deadline - start)
        raise PeerError("UP-616", seconds=deadline - start)

    def _is_any_interface(self, places: list[str]) -> bool:
        prefix = f"{self._path}/{self._path.rpartition('/')[2]}:"
        return any(place.startswith(prefix) for place in places)

    def _news(self, deadline: float) -> list[str] | None:
        """The kernel's next events, None after `deadline`; what udev announced is noted."""
        ready = self._host.wait(self._waits, deadline)
        if self._link in ready:
            raise PeerError("UP-615")
        if self._asker in ready:
            raise PeerError("UP-611")
        if not ready:
            return None
        news = self._events.pending()
        self._announced |= {e.removeprefix(UDEV) for e in news if e.startswith(UDEV)}
        return [event for event in news if not event.startswith(UDEV)]

    def _is_configured(self) -> bool:
        """Whether the kernel may use the device, and has chosen a configuration.

        Without one the file is empty (drivers/usb/core/sysfs.c). It is read under the device's
        lock, so after all drivers have probed where usbguard allows the device late.
        """
        return self._read("authorized") != "0" and self._read("bConfigurationValue") != ""

    def _is_announced(self) -> bool:
        """Whether udev, if it runs, has done its part for the device and what drives it.

        It handles a parent's later event after those of its children, so nodes are there.
        """
        if not self._host.exists(UDEV_RUNS):
            return True
        prefix = self._path.rpartition("/")[2] + ":"
        wanted = {f"add@{self._path}"} | {
            f"bind@{self._path}/{name}"
            for name in self._host.listing(f"/sys{self._path}")
            if name.startswith(prefix) and self._host.exists(f"/sys{self._path}/{name}/driver")
        }
        return wanted <= self._announced

    def _is_there(self) -> bool:
        return self._host.exists(f"/sys{self._path}")

    def _may_have_drivers(self) -> bool:
        """Whether any interface is authorized, or none says that it is not.

        Somebody may keep drivers from all that comes to this bus (Documentation/usb/
        authorization.rst, "Interface authorization"), and let some of it pass a moment later.
        """
        if self._read("../interface_authorized_default") != "0":
            return True
        prefix = self._path.rpartition("/")[2] + ":"
        names = [n for n in self._host.listing(f"/sys{self._path}") if n.startswith(prefix)]
        return not names or any(self._read(f"{name}/authorized") != "0" for name in names)

    def _read(self, name: str) -> str:
        return self._text(f"/sys{self._path}/{name}")

    def _text(self, path: str) -> str:
        try:
            return self._host.read(path).strip()
        except OSError:
            return ""

    def _failure(self) -> SystemLackError:
        """Why the kernel has not configured the device, with the command that mends it."""
        has_usbguard = self._host.find_command("usbguard") is not None
        if not self._is_there():
            if has_usbguard:
                return SystemLackError("UP-758", product=self._product)
            return SystemLackError("UP-759", product=self._product)
        product = vhci.product(self._host, self._path)
        if self._read("authorized") != "0":
            return SystemLackError("UP-752", product=product)
        if has_usbguard:
            return SystemLackError("UP-750", product=product)
        return SystemLackError("UP-751", product=product)
