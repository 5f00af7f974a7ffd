# SPDX-License-Identifier: GPL-2.0-or-later
"""The two USB/IP drivers of the kernel, modelled in Python on a machine of files.

What a driver shows is kept in files, so that it outlives a process as in a real kernel; a session
is watched by a thread of the process that started it. The kernel's uevents come over netlink and
cannot be faked: what needs one to go on is tested in the lab.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from usb_proxy.kernel import USBDEVFS_CLAIM_PORT, USBDEVFS_RESET, PortState, UsbSpeed

from .fake_machine import FakeMachine, fail, open_files, show

if TYPE_CHECKING:
    pass

MATCH_SLOTS = 16
STUB_FILES = ("usbip_status", "usbip_sockfd")


def node(tree: Path, folder: Path) -> Path:
    """The node of a device in usbfs."""
    bus, device = (int((folder / name).read_text()) for name in ("busnum", "devnum"))
    return tree / f"dev/bus/usb/{bus:03}/{device:03}"


class Slot:
    """A port of vhci-hcd."""

    def __init__(self, controller: int, half: str, index: int, number: int, hub: Path) -> None:
        self.controller, self.half, self.index, self.number = controller, half, index, number
        self.folder = hub / f"{hub.name.removeprefix('usb')}-{index + 1}"
        self.state, self.speed, self.devid = PortState.FREE, 0, 0

    def line(self) -> str:
        """Its line of the status file."""
        where = f"{self.half}  {self.number:04} {self.state:03} {self.speed:03}"
        return f"{where} {self.devid:08x} {0:06} 0-0\n"


class FakeKernel(FakeMachine):
    """A machine with usbip-host, and with vhci-hcd once that is added."""

    def __init__(self, tree: Path) -> None:
        super().__init__(tree)
        self.fastest = UsbSpeed.SUPER_PLUS
        self.slots: list[Slot] = []
        self._devices = 1
        self._claims: dict[int, tuple[str, str]] = {}
        self.resets: list[str] | None = []
        """The devices that were reset, each by the name of its node; None: none can be."""
        self.dying_seconds = 0.0
        """How long a device that leaves is seen without its files."""
        self.returns: dict[str, list[dict[str, str]]] = {}
        """What comes after a device was deconfigured: it leaves, and comes back as the next."""
        self.usb = tree / "sys/bus/usb"
        (self.usb / "devices").mkdir(parents=True)
        for driver in ("usb", "other", "usbip-host"):
            (self.usb / "drivers" / driver).mkdir(parents=True)
            for name in ("bind", "unbind", "rebind"):
                (self.usb / "drivers" / driver / name).touch()
        (self.usb / "drivers_probe").touch()
        (self.usb / "drivers_autoprobe").write_text("1\n")
        self.match_busid = self.usb / "drivers/usbip-host/match_busid"
        self.match_busid.write_text("{}")

    def unload(self, driver: str) -> None:
        """Take a driver out of the kernel; the command modprobe puts it back."""
        folder = {"usbip-host": self.usb / "drivers/usbip-host"}.get(
            driver, self.tree / "sys/devices/platform/vhci_hcd.0"
        )
        shutil.move(folder, self.tree / driver)
        self.command("modprobe", f'[ "$1" = {driver} ] && mv "{self.tree}/{driver}" "{folder}"')

    # usbip-host.

    def release_device(self, bus_id: str) -> None:
        """Give a device back to its usual driver, as an administrator or rmmod does."""
        self._write_unbind(self.match_busid, bus_id)
        self._write_drivers_probe(self.match_busid, bus_id)

    def table(self) -> dict[str, str]:
        """What match_busid holds: names, each with the node of the device that was bound last."""
        return dict(json.loads(self.match_busid.read_text()))

    def device(self, bus_id: str) -> Path:
        """The folder of a device that is plugged in; ENODEV if there is none."""
        link = self.usb / "devices" / bus_id
        return link.resolve() if link.is_symlink() else fail(errno.ENODEV)

    def driver(self, bus_id: str) -> str | None:
        """The driver of a device."""
        link = self.device(bus_id) / "driver"
        return link.readlink().name if link.is_symlink() else None

    def status(self, bus_id: str) -> int:
        """The usbip_status of a device."""
        return int((self.device(bus_id) / "usbip_status").read_text())

    def plug(
        self,
        bus_id: str,
        driver: str | None = "usb",
        below: str = "pci0000:00/usb2",
        **attributes: str,
    ) -> Path:
        """Plug a device in: its folder."""
        self._devices += 1
        home = self.tree / "sys/devices" / below / bus_id
        home.mkdir(parents=True)
        (home.parent / "busnum").write_text("2\n")
        (home.parent / "devnum").write_text("1\n")
        shown = {"busnum": "2", "devnum": str(self._devices), "dev": f"189:{self._devices}"}
        shown |= {"idVendor": "12ab", "idProduct": "00cd", "bDeviceClass": "00"}
        shown |= {"speed": "480", "authorized": "1", "bConfigurationValue": "1"}
        for name, text in (shown | attributes).items():
            (home / name).write_text(f"{text}\n")
        (self.tree / f"run/udev/data/c{(shown | attributes)['dev']}").touch()
        if self.is_claimed(bus_id):
            (home / "bConfigurationValue").write_text("\n")
        for folder in (home, home.parent):
            node(self.tree, folder).parent.mkdir(parents=True, exist_ok=True)
            node(self.tree, folder).touch()
        if driver:
            self._set_driver(home, driver)
        (self.usb / "devices" / bus_id).symlink_to(home)
        self.announce()
        return home

    def bind(self, home: Path) -> None:
        """Give a device the usual driver, which it was plugged in without."""
        self._set_driver(home, "usb")
        self.announce()

    def unplug(self, bus_id: str, ends: bool = True) -> None:
        """Unplug a device; usbip-host `ends` its session, or not (usbip_event.c, usbip_in_eh)."""
        home = self.device(bus_id)
        with self._event_lock:
            node(self.tree, home).unlink()
            # Its interfaces are told of first (drivers/usb/core/message.c, usb_disable_device), and
            # its files go before its name does (drivers/base/core.c, device_del).
            (home / "busnum").unlink()
            self.announce()
            time.sleep(self.dying_seconds)
            (self.usb / "devices" / bus_id).unlink()
            shutil.rmtree(home)
        if ends:
            self._end(bus_id)
        self.announce()

    def replug(self, bus_id: str, **attributes: str) -> None:
        """Unplug a device, and plug one in its place."""
        below = str(self.device(bus_id).parent.relative_to(self.tree / "sys/devices"))
        self.unplug(bus_id)
        self.plug(bus_id, below=below, **attributes)

    def is_claimed(self, bus_id: str) -> bool:
        """Whether somebody has claimed its port, and has the hub's node open still."""
        return any(
            name == bus_id
            and os.path.realpath(f"/proc/self/fd/{fd}") == path
            and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
            for fd, (path, name) in self._claims.items()
        )

    def control(self, fd: int, request: int, argument: int | bytes = 0) -> None:
        if request == USBDEVFS_RESET and self.resets is not None:
            self.resets.append(os.path.realpath(f"/proc/self/fd/{fd}").rpartition("/")[2])
            return
        if request != USBDEVFS_CLAIM_PORT or not isinstance(argument, bytes):
            super().control(fd, request, argument)
            return
        ends = tuple(f"{mark}{int.from_bytes(argument, sys.byteorder)}" for mark in "-.")
        plugged = [path.name for path in (self.usb / "devices").iterdir()]
        names = (name for name in [*self.returns, *plugged] if name.endswith(ends))
        bus_id = next(names, "")
        is_held = bus_id in plugged and self.driver(bus_id) == "usbip-host"
        if is_held or self.is_claimed(bus_id):
            fail(errno.EBUSY)
        self._claims[fd] = os.path.realpath(f"/proc/self/fd/{fd}"), bus_id

    def _set_driver(self, home: Path, driver: str) -> None:
        (home / "driver").symlink_to(self.usb / "drivers" / driver)
        if driver == "usbip-host":
            for name in STUB_FILES:
                show(home / name, "1\n")

    def _write_match_busid(self, file: Path, text: str) -> None:
        verb, _, name = text.partition(" ")
        table = self.table()
        assert verb == "add"
        if name not in table and len(table) == MATCH_SLOTS:
            fail(errno.ENOMEM)
        show(file, json.dumps({name: ""} | table))

    def _write_bind(self, file: Path, text: str) -> None:
        if self.driver(text) is not None:
            fail(errno.EBUSY)
        if file.parent.name == "usbip-host":
            if text not in self.table():
                fail(errno.ENODEV)
            bound = {text: str(node(self.tree, self.device(text)))}
            show(self.match_busid, json.dumps(self.table() | bound))
        self._set_driver(self.device(text), file.parent.name)

    def _write_unbind(self, file: Path, text: str) -> None:
        if self.driver(text) != file.parent.name:
            fail(errno.ENODEV)
        self._end(text)
        for name in ("driver", *STUB_FILES):
            (self.device(text) / name).unlink(missing_ok=True)
        if file.parent.name == "usb":
            show(self.device(text) / "bConfigurationValue", "\n")

    def _write_bConfigurationValue(self, file: Path, text: str) -> None:
        assert text == "-1"
        show(file, "\n")
        bus_id = file.parent.name
        if self.returns.get(bus_id) is not None:
            threading.Thread(target=self._leave, args=(bus_id,), daemon=True).start()

    def _leave(self, bus_id: str) -> None:
        below = str(self.device(bus_id).parent.relative_to(self.tree / "sys/devices"))
        self.unplug(bus_id)
        for attributes in self.returns[bus_id]:
            self.plug(bus_id, below=below, **attributes)

    def _write_drivers_probe(self, _file: Path, text: str) -> None:
        if self.driver(text) is None:
            self._set_driver(self.device(text), "usb")
            if (self.device(text) / "authorized").read_text() == "1\n":
                show(self.device(text) / "bConfigurationValue", "1\n")

    def _write_rebind(self, file: Path, text: str) -> None:
        table = self.table()
        bound = table.pop(text, None) if text in table else fail(errno.ENODEV)
        held = open_files()
        assert any(file.removesuffix(" (deleted)") == bound for file in held), "a stale pointer"
        if (self.usb / "devices" / text).exists() and self.driver(text) is None:
            self._write_drivers_probe(file, text)
        show(self.match_busid, json.dumps(table))

    def _write_authorized(self, file: Path, text: str) -> None:
        show(file, f"{text}\n")

    def _write_usbip_sockfd(self, file: Path, text: str) -> None:
        status = file.with_name("usbip_status")
        bus_id = file.parent.name

        def ended() -> None:
            if status.exists():
                show(status, "1\n")

        with self._event_lock:
            if int(status.read_text()) != 1:
                fail(errno.EINVAL)
            self._begin(bus_id, int(text), ended)
            show(status, "2\n")

    # vhci-hcd.

    def add_vhci(self, controllers: int = 2, half: int = 3) -> None:
        """Give the machine virtual controllers, with so many ports in each half."""
        for controller in range(controllers):
            folder = self.tree / f"sys/devices/platform/vhci_hcd.{controller}"
            for which, (name, speed) in enumerate((("hs", 480), ("ss", 5000))):
                hub = folder / f"usb{10 + 2 * controller + which}"
                hub.mkdir(parents=True)
                (hub / "speed").write_text(f"{speed}\n")
                (hub / "authorized").write_text("1\n")
                (hub / "power").mkdir()
                (hub / f"{hub.name[3:]}-0:1.0/driver").mkdir(parents=True)
                first = controller * 2 * half + which * half
                self.slots += [Slot(controller, name, i, first + i, hub) for i in range(half)]
            (folder / "power").mkdir()
        for name in ("attach", "detach"):
            (self.tree / "sys/devices/platform/vhci_hcd.0" / name).touch()
        self.show_ports()

    def show_ports(self) -> None:
        """Write the status files anew."""
        for controller in {slot.controller for slot in self.slots}:
            lines = [slot.line() for slot in self.slots if slot.controller == controller]
            name = f"status.{controller}" if controller else "status"
            path = self.tree / "sys/devices/platform/vhci_hcd.0" / name
            show(path, "hub port sta spd dev      sockfd local_busid\n" + "".join(lines))
        self.show_hubs()

    def show_hubs(self) -> None:
        """A hub sleeps while there is no device."""
        for hub in {slot.folder.parent for slot in self.slots}:
            has_device = any(s.folder.parent == hub and s.folder.exists() for s in self.slots)
            state = "active" if has_device else "suspended"
            show(hub / "power/runtime_status", f"{state}\n")

    def reload_ports(self) -> None:
        """Take over what another process has written into the status files."""
        for controller in {slot.controller for slot in self.slots}:
            name = f"status.{controller}" if controller else "status"
            path = self.tree / "sys/devices/platform/vhci_hcd.0" / name
            for line in path.read_text().splitlines()[1:]:
                _half, number, state, speed, devid, *_ = line.split()
                slot = self.slots[int(number)]
                slot.state, slot.speed, slot.devid = int(state), int(speed), int(devid, 16)

    def occupy(self, number: int, devid: int = 0x10002, state: int = PortState.USED) -> Slot:
        """Attach a device to a port by another program."""
        slot = self.slots[number]
        slot.state, slot.devid = state, devid
        slot.folder.mkdir()
        (slot.folder / "busnum").touch()
        self.show_ports()
        return slot

    def used(self) -> list[int]:
        """The numbers of the ports that are not free."""
        return [slot.number for slot in self.slots if slot.state != PortState.FREE]

    def _write_attach(self, _file: Path, text: str) -> None:
        number, fd, devid, speed = map(int, text.split())
        if not (0 <= number < len(self.slots) and 1 <= speed <= self.fastest):
            fail(errno.EINVAL)
        slot = self.slots[number]
        if (speed >= UsbSpeed.SUPER) != (slot.half == "ss"):
            fail(errno.EINVAL)
        with self._event_lock:
            if slot.state != PortState.FREE:
                fail(errno.EBUSY)
            self._begin(f"port {number}", fd, lambda: self._free(slot))
            self.occupy(number, devid)
            slot.speed = speed
            self.show_ports()

    def _write_detach(self, _file: Path, text: str) -> None:
        slot = self.slots[int(text)]
        if slot.state == PortState.FREE:
            fail(errno.EINVAL)
        self._end(f"port {text}")
        self._free(slot)

    def _free(self, slot: Slot) -> None:
        slot.state, slot.speed, slot.devid = PortState.FREE, 0, 0
        self.show_ports()
        shutil.rmtree(slot.folder, ignore_errors=True)
        self.show_hubs()
        self.announce()
