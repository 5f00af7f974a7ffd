# SPDX-License-Identifier: GPL-2.0-or-later
"""The frontend's kernel driver, vhci-hcd: its ports, and attaching a device to one."""

from __future__ import annotations

import errno

from usb_proxy.errors import InUseError, PeerError, SystemLackError, printable, reason
from usb_proxy.host import POLLIN
from usb_proxy.kernel import AUTOPROBE, DENY_NEW, PROBE, VHCI_DRIVER, PortState, UsbSpeed
from usb_proxy.uevents import Uevents

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from usb_proxy.handshake import Offer
    from usb_proxy.host import Host

PLATFORM = "/sys/devices/platform"
READY_SECONDS = 10.0
"""How long to wait for a port from which a device was just taken: a detach while the kernel
enumerates holds the hub for 5 s."""

HUB_SECONDS = 6.0
"""How long to wait for a hub at which the kernel is at work: it may wait 5 s for each answer."""


class Port:
    """One line of a `status` file: `controller` and `index` count from 0 (vhci_sysfs.c)."""

    __slots__ = ("controller", "devid", "half", "index", "number", "state")

    def __init__(self, controller: int, index: int, fields: list[str]) -> None:
        """ValueError or IndexError for fields that are none of a port."""
        if not "".join(fields[1:5]).isalnum():
            raise ValueError
        self.controller = controller
        self.index = index
        self.half = fields[0]
        self.number = int(fields[1])
        self.state = int(fields[2])
        self.devid = int(fields[4], 16)


def ports(host: Host) -> Iterator[Port]:
    """The ports of all controllers, in the kernel's order.

    SystemLackError without vhci-hcd, and with one that shows something else.
    """
    for _, each in _controllers(host):
        yield from each


def _controllers(host: Host) -> Iterator[tuple[int, list[Port]]]:
    """The controllers with their ports, each looked at when it is asked for."""
    controller = 0
    while True:
        name = f"status.{controller}" if controller else "status"
        try:
            lines = host.read(f"{VHCI_DRIVER}/{name}").splitlines()[1:]
        except FileNotFoundError:
            if controller:
                return
            raise SystemLackError("UP-705") from None
        indices = {"hs": 0, "ss": 0}
        found = []
        for line in lines:
            fields = line.split()
            try:
                found.append(Port(controller, indices[fields[0]], fields))
            except (IndexError, KeyError, ValueError):
                shown = printable(line.encode(), 60)
                raise SystemLackError("UP-730", line=shown) from None
            indices[fields[0]] += 1
        yield controller, found
        controller += 1


def device_path(host: Host, port: Port) -> str:
    """The kernel's path of the device in a port (DEVPATH), whether there is one or not."""
    return f"{_stem(host, port.controller, port.half)}{port.index + 1}"


def _stem(host: Host, number: int, half: str) -> str:
    """What the DEVPATHs of a controller's half begin with; the port of its root hub follows."""
    controller = f"{PLATFORM}/vhci_hcd.{number}"
    for name in host.listing(controller):
        if name.startswith("usb") and name[3:].isdigit():
            is_high_speed = host.read(f"{controller}/{name}/speed").strip() == "480"
            if is_high_speed == (half == "hs"):
                return f"{controller}/{name}/{name[3:]}-".removeprefix("/sys")
    raise SystemLackError("UP-706", controller=number, half=half)


def product(host: Host, path: str) -> str:
    """What the device at a DEVPATH says it is, `VVVV:PPPP`; nothing when it has just gone."""
    try:
        return ":".join(host.read(f"/sys{path}/{n}").strip() for n in ("idVendor", "idProduct"))
    except OSError:
        return ""


def is_shut(host: Host) -> bool:
    """Whether the kernel takes no new USB devices at all."""
    return host.exists(DENY_NEW) and host.read(DENY_NEW).strip() == "1"


def attach(
    host: Host, fd: int, offer: Offer, events: Uevents, before: Callable[[Port], None]
) -> tuple[Port, str]:
    """Plug the device behind the stream socket `fd` into a free port; gives port and DEVPATH.

    The kernel keeps the socket. `events` must be listening already; `before` is called with each
    port that is going to be tried. InUseError when no port is free, PeerError when the kernel
    refuses the offer, SystemLackError when it uses none of its virtual hubs or takes no devices.
    """
    if is_shut(host):
        raise SystemLackError("UP-763")
    half = "ss" if offer.speed >= UsbSpeed.SUPER else "hs"
    deadline = host.now() + READY_SECONDS
    removed: list[str] = []
    while True:
        for port, path in _places(host, half, removed, deadline):
            before(port)
            if _try_attach(host, port, fd, offer):
                return port, path
        is_full = not any(p.half == half and p.state == PortState.FREE for p in ports(host))
        if is_full or not host.wait({events.fileno(): POLLIN}, deadline):
            total = sum(p.half == half for p in ports(host))
            speed = "SuperSpeed" if half == "ss" else "high-speed"
            raise InUseError("UP-405", total=total, speed=speed)
        removed += events.pending()


def _places(
    host: Host, half: str, removed: list[str], deadline: float
) -> Iterator[tuple[Port, str]]:
    """The ports that can be tried, with their DEVPATHs; no more is looked at than is asked for.

    Free says that the connection is gone; the old device may still be on its way out, if it is not
    among the `removed`, and one that is plugged into its place meanwhile comes late or never. The
    kernel does one thing after the other at a hub: one that sleeps goes first, and last one where
    something leaves. SystemLackError where it uses none of the hubs with a free port.
    """
    awake: list[tuple[str, list[tuple[Port, str]]]] = []
    held_up: list[tuple[Port, str]] = []
    refusal = None
    is_any = False
    for number, found in _controllers(host):
        free = [port for port in found if port.half == half and port.state == PortState.FREE]
        if not free:
            continue
        stem = _stem(host, number, half)
        hub = stem.rpartition("/")[0]
        if why := _refusal(host, number, half, hub):
            refusal = why
            continue
        is_any = True
        places = [(port, f"{stem}{port.index + 1}") for port in free]
        leaving = {p for _, p in places if host.exists(f"/sys{p}") and f"remove@{p}" not in removed}
        ready = [place for place in places if place[1] not in leaving]
        if leaving:
            held_up += ready
        elif _sleeps(host, hub):
            yield from ready
        else:
            awake.append((hub, ready))
    if refusal and not is_any:
        raise refusal
    for hub, ready in awake:
        _await_hub(host, hub, deadline)
        yield from ready
    yield from held_up


def _refusal(host: Host, number: int, half: str, hub: str) -> SystemLackError | None:
    """Why nothing arrives at a hub, if the kernel does not use it.

    One that came while nothing was given a driver gets its own here, once that is over.
    """
    name = hub.rpartition("/")[2]
    if host.read(f"/sys{hub}/authorized").strip() == "0":
        return SystemLackError("UP-757", hub=name)
    interface = f"{name[3:]}-0:1.0"
    if host.exists(f"/sys{hub}/{interface}/driver"):
        return None
    if host.read(AUTOPROBE).strip() == "0":
        return SystemLackError("UP-762")
    for each in (name, interface):
        try:
            host.write(PROBE, each)
        except OSError:
            pass  # Whether it has a driver is what counts.
    if host.exists(f"/sys{hub}/{interface}/driver"):
        return None
    return SystemLackError("UP-706", controller=number, half=half)


def _sleeps(host: Host, hub: str) -> bool:
    """Whether the kernel has nothing to do at a hub; False also where it does not tell."""
    try:
        return host.read(f"/sys{hub}/power/runtime_status").strip() == "suspended"
    except OSError:
        return False


def _await_hub(host: Host, hub: str, deadline: float) -> None:
    """Wait until the kernel does nothing at a hub, at most for HUB_SECONDS.

    It may be asking a device that has left before it had a folder, and whose port is free: it
    would go on to ask the one that is plugged in there, which never answers. It holds the hub's
    lock meanwhile (drivers/usb/core/hub.c, hub_event), and who reads this file waits for that
    (sysfs.c, bConfigurationValue_show), a child, since only a signal ends that wait.
    """
    seconds = min(HUB_SECONDS, max(deadline - host.now(), 0.0))
    try:
        host.run(["cat", f"/sys{hub}/bConfigurationValue"], seconds)
    except (SystemLackError, OSError):
        pass  # It is never done, or nothing can be started: the port is tried all the same.


def _try_attach(host: Host, port: Port, fd: int, offer: Offer) -> bool:
    """Attach to this port: False when it was taken by somebody else meanwhile."""
    speed = offer.speed
    while True:
        try:
            host.write(f"{VHCI_DRIVER}/attach", f"{port.number} {fd} {offer.devid} {speed}")
            return True
        except OSError as error:
            if error.errno in (errno.EBUSY, errno.EAGAIN):
                return False
            # Kernels before 6.12 know SuperSpeed alone, and use it for all that is faster.
            if error.errno == errno.EINVAL and speed == UsbSpeed.SUPER_PLUS:
                speed = UsbSpeed.SUPER
                continue
            if error.errno in (errno.EACCES, errno.EPERM):
                raise SystemLackError(
                    "UP-708", tried="attach", device=f"{offer.devid:#x}"
                ) from error
            raise PeerError(
                "UP-617", devid=offer.devid, port=port.number, reason=reason(error)
            ) from error


def find(host: Host, number: int, devid: int | None = None) -> Port | None:
    """The port of this number if something is attached there: the device `devid`, if given.

    The kernel shows the devid only once the device has an address; until then any counts.
    """
    if not host.exists(VHCI_DRIVER):
        return None
    for port in ports(host):
        is_known = port.state == PortState.USED and devid is not None
        if port.number == number and port.state != PortState.FREE:
            return None if is_known and port.devid != devid else port
    return None


def detach(host: Host, port: Port) -> None:
    """Unplug what is at a port; nothing when it has just gone by itself."""
    try:
        host.write(f"{VHCI_DRIVER}/detach", str(port.number))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise SystemLackError("UP-713", port=port.number, reason=reason(error)) from error


def await_removal(host: Host, path: str, deadline: float) -> bool:
    """Sleep until the device at a DEVPATH has gone; False when `deadline` passes first."""
    with Uevents() as events:
        if not host.exists(f"/sys{path}"):
            return True
        while host.wait({events.fileno(): POLLIN}, deadline, stoppable=False):
            # The kernel announces it just before the folder goes (drivers/base/core.c, device_del).
            if f"remove@{path}" in events.pending() or not host.exists(f"/sys{path}"):
                return True
    return False
