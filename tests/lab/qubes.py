# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab as tests use it: what they do again and again, and what is left after it."""

import contextlib
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from usb_proxy.dom0 import untrusted
from usb_proxy.idents import Announcement

from .guests import BUSYBOX, Guest
from .lab import Lab
from .router import Call, Completed

PACKAGES = Path(__file__).parents[2] / "dist"

RESET = (
    "import fcntl, os; d = '{}/'; b, n = (int(open(d + f).read()) for f in ('busnum', 'devnum'));"
    " fcntl.ioctl(os.open(f'/dev/bus/usb/{{b:03d}}/{{n:03d}}', os.O_WRONLY), 0x5514, 0)"
)
"""A program in Python that resets the device at a sysfs folder: USBDEVFS_RESET."""


class Qubes:
    """The lab, and what these tests do with it again and again."""

    announces = True
    """Whether `attach` tells what the device is, as dom0 does."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.backend = lab.backend
        self.frontend = lab.frontend

    def plug_storage(
        self, id: str, source: Path | int = 1 << 20, bus: str = "xhci.0", port: str | None = None
    ) -> str:
        """Plug a stick into sys-usb and wait until it is usable there; gives its bus id."""
        self.backend.plug_storage(id, source, bus, port)
        return self.bus_id(f"serial={id}", 'driver && test -e "$d":1.0/driver')

    def bus_id(self, attribute: str, ready: str = "driver") -> str:
        """The bus id of the device in sys-usb with `FILE=TEXT` in sysfs, once it is `ready`."""
        name, _, text = attribute.partition("=")
        find = (
            'found=; for d in /sys/bus/usb/devices/*-*; do case "$d" in *:*) continue; esac;'
            f' read -r said <"$d/{name}" && [ "$said" = "{text}" ] && test -e "$d"/{ready}'
            ' && found="${d##*/}" && break; done; [ "$found" ]'
        )
        return self.backend.wait_for(find, then='echo "$found"').text

    def told(self, device: str) -> str:
        """What dom0 tells of a device, as sys-usb publishes it: see `dom0.services.told`."""
        key = f"{untrusted.ROOT}/{device.replace('.', '_')}"
        self.backend.run("udevadm settle --timeout=10", check=False)
        found = self.lab.qubesdb_list(self.backend, f"{key}/")
        said = untrusted.description(found.get(f"{key}/desc"))
        if said is None:
            return ""
        kinds = dict.fromkeys(untrusted.interfaces(found.get(f"{key}/interfaces")))
        return Announcement(f"{said.vendor}:{said.product} {' '.join(kinds) or '*'}")

    def attach(self, device: str, announced: str | None = None) -> Completed:
        """qubes.USBAttach in work, with the rule that dom0 makes for it."""
        with self.lab.allowed("qubes.USB", device, self.frontend, self.backend):
            return self.start_attach(device, announced).wait(120)

    def start_attach(self, device: str, announced: str | None = None) -> Call:
        """The same under way, without the rule; `announced` is what `told` gives, if not given."""
        if announced is None:
            announced = self.told(device) if self.announces else ""
        request = f"sys-usb {device}\n{announced}".rstrip("\n") + "\n"
        return self.lab.start_call(self.frontend, "qubes.USBAttach", request.encode())

    def place(self) -> str:
        """The sysfs folder of the device in work, if it is the only one."""
        return self.frontend.run(
            "ls -d /sys/devices/platform/vhci_hcd.*/usb*/*-*[0-9] | grep -v :"
        ).text

    @contextlib.contextmanager
    def one_hub(self) -> Iterator[None]:
        """Meanwhile devices in work share the hubs of one controller: its kernel uses no other."""
        spare = "/sys/devices/platform/vhci_hcd.[1-9]*/usb*"
        use = f"for hub in {spare}; do echo {{}} > $hub/authorized; done"
        self.frontend.run(f"modprobe vhci-hcd; {use.format(0)}")
        try:
            yield
        finally:
            self.frontend.run(use.format(1))

    @contextlib.contextmanager
    def udev_rule(self, rule: str, device: str, gives: str) -> Iterator[None]:
        """A rule in sys-usb that gives a device a property meanwhile.

        udevd goes on with the rules of before for a moment while much happens.
        """
        path, place = "/run/udev/rules.d/99-test.rules", f"/sys/bus/usb/devices/{device}"
        event = f"udevadm control --reload; udevadm trigger --settle {place}"
        has = f"udevadm info {place} | grep -q {gives}"
        try:
            self.backend.write(path, rule)
            self.backend.wait_for(f"{event}; {has}")
            yield
        finally:
            self.backend.run(f"rm {path}")
            self.backend.wait_for(f"{event}; ! {has}")

    def detach(self, device: str) -> Completed:
        """qubes.USBDetach in work."""
        return self.lab.call(self.frontend, "qubes.USBDetach", f"sys-usb {device}\n".encode())

    def take_back(self, device: str) -> Completed:
        """qubes.USBDetach in sys-usb."""
        return self.lab.call(self.backend, "qubes.USBDetach", f"{device}\n".encode())

    def connected_to(self, bus_id: str) -> bytes | None:
        """What QubesDB says of a device."""
        key = f"/qubes-usb-devices/{bus_id.replace('.', '_')}/connected-to"
        return self.lab.qubesdb_list(self.backend, key).get(key)

    def driver(self, bus_id: str) -> str:
        """The driver of a device in sys-usb."""
        link = f"/sys/bus/usb/devices/{bus_id}/driver"
        return self.backend.run(f'basename "$(readlink {link})"', check=False).text

    def leftovers(self) -> list[str]:
        """All that an ended attachment may have left, after its guest's name; has to be empty."""
        here = (
            "ls /run/qubes-usb-proxy/[abdegi]*; ls /run/lab-qubesdb/*connected-to;"
            " ls /run/lab-qubesdb/*x-pid; ls -A /run/qubes/*;"
            " ls -d /sys/bus/usb/drivers/usbip-host/*-*;"
            # 004 is free; what a port shows meanwhile is not.
            " grep -hv -e ^hub -e ' 004 ' /sys/devices/platform/vhci_hcd.0/status*;"
            f" {BUSYBOX} pgrep -af 'usb-(export|import)|[l]aunch usb-|[q]rexec-client-vm';"
            # A bus on which interfaces get no driver; some tests close one for devices themselves.
            " grep -L 1 /sys/devices/platform/vhci_hcd.*/usb*/interface_authorized_default;"
            # Unnamed stream sockets: the connections' own, which the kernel's drivers may hold.
            " awk '$5 == \"0001\" && NF == 7' /proc/net/unix"
        )
        guests = (self.backend, self.frontend)
        calls = [guest.start_command(f"{{ {here}; }} 2>&-; true") for guest in guests]
        return [
            f"{guest.name}: {line}"
            for guest, call in zip(guests, calls, strict=True)
            for line in call.wait(60).text.splitlines()
        ]

    def await_clean(self, seconds: float = 20, besides: Collection[str] = ()) -> list[str]:
        """Wait until nothing is left over `besides`; gives what still is after that time."""
        deadline = time.monotonic() + seconds
        while True:
            found = [line for line in self.leftovers() if line not in besides]
            if not found or time.monotonic() > deadline:
                return found

    @contextlib.contextmanager
    def witness(self) -> Iterator[list[str]]:
        """All that the kernel of work announces meanwhile: `ACTION /devices/… (SUBSYSTEM)`."""
        seen: list[str] = []
        file = "/run/witness"
        self.frontend.run("modprobe vhci-hcd; udevadm settle")  # Its own hubs are no arrival.
        watching = self.frontend.start_command(f"exec stdbuf -oL udevadm monitor --kernel > {file}")
        # What it says of two devices that nobody uses: that it hears, and that it has heard all.
        first, last = (f"/sys/devices/virtual/mem/{name}/uevent" for name in ("full", "zero"))
        self.frontend.wait_for(f"echo change > {first}; grep mem/full {file}")
        try:
            yield seen
        finally:
            self.frontend.wait_for(f"echo change > {last}; grep mem/zero {file}")
            watching.cancel()
            for line in self.frontend.read(file).decode().splitlines():
                mark, _, event = line.partition("] ")
                if mark.startswith("KERNEL["):
                    seen.append(" ".join(event.split()))

    def unplug_all(self) -> None:
        """Pull everything out of sys-usb, and wait until its kernel has noticed."""
        self.backend.unplug_all()
        self.backend.wait_for("! ls /sys/bus/usb/devices | grep -v usb | grep -v :")


def guest_hash(guest: Guest, path: str) -> str:
    """The SHA-256 of a block device in a guest, once it is there, read from the device."""
    guest.wait_for(f"test -b {path}")
    guest.run("echo 3 > /proc/sys/vm/drop_caches")
    return guest.run(f"sha256sum < {path}").text.split()[0]
