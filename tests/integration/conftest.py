# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab for the tests, and what has to hold after each of them."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.guests import Guest
from tests.lab.lab import Lab
from tests.lab.router import Completed

PACKAGES = Path(__file__).parents[2] / "dist"


class Qubes:
    """The lab, and what these tests do with it again and again."""

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
            'for d in /sys/bus/usb/devices/*-*; do case "$d" in *:*) continue; esac;'
            f' [ "$(cat "$d/{name}" 2>&-)" = "{text}" ] && test -e "$d"/{ready}'
            ' && basename "$d" && break; done'
        )
        self.backend.wait_for(f"{find} | grep -q .")
        return self.backend.run(find).text

    def attach(self, device: str) -> Completed:
        """qubes.USBAttach in work, with the rule that dom0 makes for it."""
        with self.lab.allowed("qubes.USB", device, self.frontend, self.backend):
            return self.lab.call(
                self.frontend, "qubes.USBAttach", f"sys-usb {device}\n".encode(), timeout=120
            )

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
            "ls /run/qubes-usb-proxy/[ei]* /run/lab-qubesdb/*connected-to /run/lab-qubesdb/*x-pid;"
            " ls -A /run/qubes/*; ls -d /sys/bus/usb/drivers/usbip-host/*-*;"
            # 004 is free; what a port shows meanwhile is not.
            " grep -hv -e ^hub -e ' 004 ' /sys/devices/platform/vhci_hcd.0/status*;"
            " pgrep -af 'usb-(export|import)|[l]aunch usb-|[q]rexec-client-vm';"
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

    def await_clean(self, seconds: float = 20) -> list[str]:
        """Wait until nothing is left over; gives what still is after that time."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.leftovers()
            if not found or time.monotonic() > deadline:
                return found

    def unplug_all(self) -> None:
        """Pull everything out of sys-usb, and wait until its kernel has noticed."""
        self.backend.unplug_all()
        self.backend.wait_for("! ls /sys/bus/usb/devices | grep -v usb | grep -v :")


@pytest.fixture(scope="session")
def running_lab() -> Iterator[Qubes]:
    """The lab with Debian 12, or the release that LAB_SUITE names."""
    with Lab(PACKAGES, os.environ.get("LAB_SUITE", "bookworm"), print) as lab:
        yield Qubes(lab)


@pytest.fixture
def qubes(running_lab: Qubes) -> Iterator[Qubes]:
    """Both guests with nothing attached and nothing plugged in, before and after."""
    yield running_lab
    problems = running_lab.await_clean()
    for guest in (running_lab.backend, running_lab.frontend):
        said = guest.run("dmesg --level=emerg,alert,crit --notime; dmesg -C").text
        problems += [f"{guest.name}: {line}" for line in said.splitlines()]
    running_lab.unplug_all()
    if problems:
        running_lab.backend.restart()
        running_lab.frontend.restart()
        pytest.fail("left over: " + "\n".join(problems))


@pytest.fixture
def stick(qubes: Qubes) -> str:
    """The bus id of a SuperSpeed stick of 1 MiB in sys-usb."""
    return qubes.plug_storage("stick")


def guest_hash(guest: Guest, path: str) -> str:
    """The SHA-256 of a block device in a guest, once it is there, read from the device."""
    guest.wait_for(f"test -b {path}")
    guest.run("echo 3 > /proc/sys/vm/drop_caches")
    return guest.run(f"sha256sum < {path}").text.split()[0]
