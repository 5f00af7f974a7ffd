# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks of a device that this qube uses itself: what is on them would suffer if it went."""

from __future__ import annotations

import errno

from usb_proxy.errors import InUseError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usb_proxy.host import Host
    from usb_proxy.sysfs import UsbDevice

BLOCK = "/sys/class/block"
VIRTUAL = ("dm-", "loop", "md", "nbd", "ram", "xvd", "zram")
"""How names of disks start that no USB device has: a qube has many of them."""

LEND_IN_USE = "/run/qubes-service/usb-proxy-lend-in-use"
"""With this qube service nobody looks whether a device is in use."""


class Claim:
    """The disks of a device, claimed, a context manager: nobody can mount them meanwhile.

    A disk that is opened with O_EXCL is claimed with all its partitions, as by a mount, a mapping,
    swap or an array, in whatever namespace (block/bdev.c, bd_may_claim). InUseError where one of
    these was there before.
    """

    def __init__(self, host: Host, device: UsbDevice) -> None:
        self._host = host
        self._fds: list[int] = []
        disks = _disks(host, device)
        if not disks or host.exists(LEND_IN_USE):
            return
        try:
            for name, path in disks.items():
                if path.split("/")[-2] == "block":  # Not a partition, in the folder of its disk.
                    self._claim(name)
        except OSError as error:
            self.release()
            if error.errno != errno.EBUSY:
                raise device.failure("look at", error) from error
            failure = InUseError("UP-410", device=device.bus_id)
            users = "; ".join(_users(host, list(disks)))
            names = " or ".join(disks)
            failure.aside = users or f"a program, or another namespace, uses {names}"
            raise failure from error

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Claim them no more."""
        while self._fds:
            self._host.close_all(self._fds.pop())

    def _claim(self, name: str) -> None:
        try:
            node = "/dev/" + name.replace("!", "/")
            self._fds.append(self._host.open_node(node, claims=True))
        except OSError as error:
            # A reader without a card, or a disk that goes just now.
            if error.errno not in (errno.ENOMEDIUM, errno.ENOENT, errno.ENXIO, errno.ENODEV):
                raise


def _disks(host: Host, device: UsbDevice) -> dict[str, str]:
    """The names of a device's disks and their partitions, each with its folder."""
    below = device.path().removeprefix("/sys/") + "/"
    found = {}
    for name in host.listing(BLOCK):
        if name.startswith(VIRTUAL):
            continue
        try:
            path = host.read_link(f"{BLOCK}/{name}").removeprefix("../../")
        except OSError:
            continue
        if path.startswith(below):
            found[name] = path
    return found


def users(host: Host, device: UsbDevice) -> list[str]:
    """By what this qube uses disks of a device, as every user may know, and sees it."""
    return _users(host, list(_disks(host, device)))


def _users(host: Host, names: list[str]) -> list[str]:
    """By what the kernel says that disks and partitions are used."""
    found: list[str] = []
    if not names:
        return found
    mounts = [line.split() for line in _lines(host, "/proc/self/mountinfo")]
    swaps = [line.split()[0].rpartition("/")[2] for line in _lines(host, "/proc/swaps")[1:]]
    for name in names:
        number = "".join(_lines(host, f"{BLOCK}/{name}/dev"))
        found += [f"{name} is mounted at {mount[4]}" for mount in mounts if mount[2] == number]
        found += [f"{name} is swap"] * (name in swaps)
        holders = host.listing(f"{BLOCK}/{name}/holders")
        found += [f"{name} is part of {holder}" for holder in holders]
    return [printable(each.encode("ascii", "replace")) for each in found]


def _lines(host: Host, path: str) -> list[str]:
    try:
        return host.read(path).splitlines()
    except OSError:
        return []
