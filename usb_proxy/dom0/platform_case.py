# SPDX-License-Identifier: GPL-2.0-or-later
"""What the platform's tests (`platform_tests`) have in common: two qubes, and a stick.

The stick is one that the backend's own kernel pretends to have (dummy_hcd, libcomposite).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from usb_proxy.dom0.qubesd import DeviceAssignment

if TYPE_CHECKING:
    import unittest

    class ExtraTestCase(unittest.TestCase):
        """qubes/tests/extra.py"""

        app: Any
        loop: asyncio.AbstractEventLoop
        template: str | None

        def create_vms(self, names: list[str]) -> list[Any]:
            """Qubes for the time of a test, which get other names than these."""
            ...

        def qrexec_policy(
            self, service: str, source: str, destination: str, allow: bool = ...
        ) -> None:
            """Add a rule before all others, for the time of a test."""
            ...
else:
    from qubes.tests.extra import ExtraTestCase

SECONDS = 60.0
"""How long anything may take to be seen."""

SERIAL = "usbproxytest"
VENDOR, PRODUCT = "1d6b", "0104"
"""The Linux Foundation's, for gadgets."""

GADGET = "/sys/kernel/config/usb_gadget/stick"
CONTENT = "/run/usb-proxy-test"
MAKE = f"""
set -e
modprobe -a dummy_hcd libcomposite usb_f_mass_storage
mountpoint -q /sys/kernel/config || mount -t configfs configfs /sys/kernel/config
test ! -e {GADGET}/configs/c.1/stick || exit 0
head -c 1048576 /dev/urandom > {CONTENT}
mkdir -p {GADGET} && cd {GADGET}
mkdir -p strings/0x409 configs/c.1 functions/mass_storage.stick
echo 0x{VENDOR} > idVendor
echo 0x{PRODUCT} > idProduct
echo Test > strings/0x409/manufacturer
echo Stick > strings/0x409/product
echo {SERIAL} > strings/0x409/serialnumber
echo {CONTENT} > functions/mass_storage.stick/lun.0/file
ln -s {GADGET}/functions/mass_storage.stick configs/c.1/stick
"""
FOLDER = f'"$(dirname "$(grep -lsx {SERIAL} /sys/bus/usb/devices/*/serial)")"'
DISK = f"/dev/disk/by-id/usb-*{SERIAL}*"


class USBTestCase(ExtraTestCase):
    """A running backend with the stick, and a frontend; their names are the platform's choice."""

    frontend_starts = True

    def setUp(self) -> None:
        """Make both."""
        super().setUp()
        self.backend, self.frontend = self.create_vms(["backend", "frontend"])
        self.told: list[str] = []
        self.configure()
        self.backend.start()
        self.listed: Any = None
        for event in ("device-added:usb", "device-removed:usb"):
            self.vm(self.backend).add_handler(event, self.note_list)
        if self.backend.run(MAKE, user="root", wait=True):
            self.skipTest("the kernel of this template has no dummy_hcd, or no libcomposite")
        self.addCleanup(self.unplug)
        self.plug()
        if self.frontend_starts:
            self.frontend.start()
        for event in ("device-attach:usb", "device-detach:usb"):
            self.vm(self.frontend).add_handler(event, self.note)

    def configure(self) -> None:
        """Set what has to be set before anything starts."""

    def note(self, _vm: Any, event: str, **_kwargs: object) -> None:
        """Remember an event."""
        self.told.append(event)

    def note_list(self, _vm: Any, _event: str, **_kwargs: object) -> None:
        """Remember what is listed now that qubesd has seen a change."""
        self.listed = self.device()

    # Waiting, and calling.

    def vm(self, wrapper: Any) -> Any:
        """The qube itself, as qubesd has it."""
        return self.app.domains[wrapper.name]

    def do(self, work: Coroutine[Any, Any, Any]) -> None:
        """Let qubesd do something."""
        self.loop.run_until_complete(work)

    def wait_for(self, holds: Callable[[], object], what: str) -> None:
        """Wait for a condition, while qubesd works."""
        deadline = time.monotonic() + SECONDS
        while not holds():
            if time.monotonic() > deadline:
                self.fail(f"after {SECONDS:.0f} s: {what}")
            self.do(asyncio.sleep(0.1))

    def shell(self, vm: Any, command: str) -> bool:
        """Whether a command succeeds, as root."""
        return bool(vm.run(command, user="root", wait=True) == 0)

    def output(self, vm: Any, command: str) -> str:
        """What a command prints, as root."""
        said, _ = vm.run(command, user="root", passio_popen=True).communicate()
        return str(said.decode().strip())

    def hide(self, vm: Any, service: str) -> None:
        """Take a service away, as if the package was not installed."""
        place, hidden = f"/etc/qubes-rpc/{service}", f"/etc/qubes-rpc/.{service}"
        self.assertTrue(self.shell(vm, f"mv {place} {hidden}"))
        self.addCleanup(self.shell, vm, f"mv {hidden} {place}")

    # The stick.

    def plug(self) -> None:
        """Plug it in; qubesd has seen it then, for a list tells more, or half of it, before."""
        self.assertTrue(self.shell(self.backend, f"ls /sys/class/udc > {GADGET}/UDC"))
        self.wait_for(lambda: self.listed, "the stick is not listed")

    def unplug(self) -> None:
        """Pull it out."""
        if self.backend.is_running():
            self.shell(self.backend, f"echo > {GADGET}/UDC")
            self.wait_for(lambda: not self.listed, "the stick is still listed")

    def device(self) -> Any:
        """What dom0 lists, if it does."""
        exposed = self.vm(self.backend).devices["usb"]
        return next((device for device in exposed if device.serial == SERIAL), None)

    def attached(self) -> list[str]:
        """The ports of which dom0 says that the frontend has them."""
        return [one.port_id for one in self.vm(self.frontend).devices["usb"].get_attached_devices()]

    def attach(self) -> None:
        """Do what `qvm-usb attach` does."""
        vm = self.vm(self.frontend)
        self.do(vm.devices["usb"].attach(DeviceAssignment(self.device(), vm, {}, "manual")))

    def detach(self) -> None:
        """Do what `qvm-usb detach` does."""
        self.do(self.vm(self.frontend).devices["usb"].detach(self.device().port))

    def assign(self, mode: str) -> None:
        """Do what `qvm-usb assign` does; it ends with the test."""
        devices = self.vm(self.frontend).devices["usb"]
        assignment = DeviceAssignment(self.device(), self.vm(self.frontend), {}, mode)
        self.do(devices.assign(assignment))
        self.addCleanup(lambda: self.do(devices.unassign(assignment)))

    def assert_works(self) -> None:
        """The frontend reads from the stick what the backend has stored there."""
        self.wait_for(self.attached, "dom0 does not say that it is attached")
        self.assertEqual(self.attached(), [self.device().port_id])
        self.wait_for(lambda: self.shell(self.frontend, f"test -b {DISK}"), "there is no disk")
        stored = self.output(self.backend, f"sha256sum < {CONTENT}")
        self.assertEqual(self.output(self.frontend, f"cat {DISK} | sha256sum"), stored)

    def has_it(self) -> bool:
        """Whether the frontend's kernel has the stick."""
        return self.shell(self.frontend, f"test -e {FOLDER}/serial")

    def assert_gone(self) -> None:
        """The frontend has it no more."""
        self.wait_for(lambda: not self.attached(), "dom0 says that it is attached")
        self.wait_for(lambda: not self.has_it(), "the frontend's kernel has it")

    def assert_free(self) -> None:
        """The backend has it back, for whoever wants it."""
        driver = f'test "$(basename "$(readlink {FOLDER}/driver)")" = usb'
        self.wait_for(lambda: self.shell(self.backend, driver), "the backend has it not back")
        self.assertIsNone(self.device().attachment)
