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
XEN = "/sys/bus/xen-backend/devices"
"""What this qube lends to others by itself: disks are `vbd-*` (drivers/block/xen-blkback)."""

TABLE_LIMIT = 1 << 20
"""Bytes of a table of the kernel's. A read of it gives a page (fs/seq_file.c)."""

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
            raise _refusal(host, device, disks) from error
        # These claim nothing: Xen's driver (drivers/block/xen-blkback/xenbus.c, xen_vbd_create),
        # and a loop device, to which a disk is a file (drivers/block/loop.c, loop_configure).
        lent, loops = _lent(host), _loops(host)
        if loops.keys() & disks or (lent and any(_number(host, name) in lent for name in disks)):
            self.release()
            raise _refusal(host, device, disks)

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
            has_gone = error.errno == errno.ENOENT and not self._host.exists(f"{BLOCK}/{name}")
            if not has_gone and error.errno not in (errno.ENOMEDIUM, errno.ENXIO, errno.ENODEV):
                raise


def _refusal(host: Host, device: UsbDevice, disks: dict[str, str]) -> InUseError:
    failure = InUseError("UP-410", device=device.bus_id)
    users = "; ".join(_users(host, list(disks)))
    failure.aside = users or f"a program, or another namespace, uses {' or '.join(disks)}"
    return failure


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
    lent, loops = _lent(host), _loops(host)
    for name in names:
        number = _number(host, name)
        for mount in mounts:
            # Some file systems have numbers of their own, as btrfs (proc(5), mountinfo).
            if number == mount[2] or f"/dev/{name}" == mount[mount.index("-") + 2]:
                found.append(f"{name} is mounted at {mount[4]}")
        found += [f"{name} is attached to another qube by qvm-block"] * (number in lent)
        found += [f"{name} is swap"] * (name in swaps)
        holders = host.listing(f"{BLOCK}/{name}/holders")
        found += [f"{name} is part of {holder}" for holder in [*holders, *loops.get(name, ())]]
    return [printable(each.encode("ascii", "replace")) for each in found]


def _number(host: Host, name: str) -> str:
    """That of a disk or partition, `MAJOR:MINOR`."""
    return "".join(_lines(host, f"{BLOCK}/{name}/dev"))


def _lent(host: Host) -> set[str]:
    """The numbers of what other qubes have as a disk; the file is in hexadecimal."""
    found = set()
    for name in host.listing(XEN):
        for line in _lines(host, f"{XEN}/{name}/physical_device"):
            try:
                found.add(":".join(str(int(part, 16)) for part in line.split(":")))
            except ValueError:
                pass  # Not yet.
    return found


def _loops(host: Host) -> dict[str, list[str]]:
    """The loop devices of each disk that some are made of."""
    found: dict[str, list[str]] = {}
    for name in [name for name in host.listing(BLOCK) if name.startswith("loop")]:
        path = "".join(_lines(host, f"{BLOCK}/{name}/loop/backing_file")[:1])
        if path.startswith("/dev/"):
            found.setdefault(path.rpartition("/")[2], []).append(name)
    return found


def _lines(host: Host, path: str) -> list[str]:
    try:
        return host.read_long(path, TABLE_LIMIT).decode("ascii", "replace").splitlines()
    except OSError:
        return []
