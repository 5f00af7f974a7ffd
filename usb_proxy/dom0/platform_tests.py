# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests for a real machine, which `qubes.tests.run` of qubes-core-admin finds and runs in dom0.

qubes/tests/extra.py calls the functions at the end by the entry points `usbproxy`, and runs each
class with dom0's default template, or with each template. qubesd does not load this module.
"""

from __future__ import annotations

import asyncio
from typing import Any
from unittest import mock

from usb_proxy.dom0.extension import USBProxyExtension
from usb_proxy.dom0.platform_case import PRODUCT, SERIAL, VENDOR, USBTestCase
from usb_proxy.dom0.policy import FILE_NAME
from usb_proxy.dom0.qubesd import DeviceAlreadyAttached, QubesException


class TC_00_Services(USBTestCase):
    """The services in the qubes, called by name, with a standing rule."""

    def setUp(self) -> None:
        """Write the rule."""
        super().setUp()
        self.qrexec_policy("qubes.USB", self.frontend.name, self.backend.name)
        self.port = self.device().port_id

    def call(self, vm: Any, service: str, request: str) -> int:
        """Call a service; its exit code."""
        return int(vm.run_service(service, user="root", input=f"{request}\n"))

    def in_frontend(self, service: str, device: str) -> int:
        """Call a service of the frontend."""
        return self.call(self.frontend, service, f"{self.backend.name} {device}")

    def test_000_attach_detach(self) -> None:
        """The frontend attaches, and detaches."""
        self.assertEqual(self.in_frontend("qubes.USBAttach", self.port), 0)
        self.assert_works()
        self.assertEqual(self.in_frontend("qubes.USBDetach", self.port), 0)
        self.assert_gone()
        self.assert_free()

    def test_010_taken_back(self) -> None:
        """The backend takes it back; it can be attached at once."""
        for _ in range(2):
            self.assertEqual(self.in_frontend("qubes.USBAttach", self.port), 0)
            self.assert_works()
            self.assertEqual(self.call(self.backend, "qubes.USBDetach", self.port), 0)
            self.assert_free()
        self.assert_gone()

    def test_020_by_vendor_and_product(self) -> None:
        """The device is named by what it is."""
        name = f"0x{VENDOR}.0x{PRODUCT}"
        self.assertEqual(self.in_frontend("qubes.USBAttach", name), 0)
        self.assert_works()
        self.assertEqual(self.in_frontend("qubes.USBDetach", name), 0)
        self.assert_gone()
        self.assert_free()

    def test_030_not_installed(self) -> None:
        """Without the service of either qube it fails, and nothing is left."""
        self.hide(self.backend, "qubes.USB")
        self.assertNotEqual(self.in_frontend("qubes.USBAttach", self.port), 0)
        self.hide(self.frontend, "qubes.USBAttach")
        self.assertEqual(self.in_frontend("qubes.USBAttach", self.port), 127)
        self.assertEqual(self.attached(), [])
        self.assert_free()


class TC_10_Devices(USBTestCase):
    """dom0's own requests."""

    def test_000_list(self) -> None:
        """It is listed with what it says, and nobody has it."""
        device = self.device()
        self.assertEqual(device.backend_domain, self.vm(self.backend))
        self.assertEqual(device.device_id, f"{VENDOR}:{PRODUCT}:{SERIAL}:u080650")
        self.assertIsNone(device.attachment)
        self.assertEqual(self.attached(), [])
        self.unplug()
        self.assertIsNone(self.device())

    def test_010_attach_detach(self) -> None:
        """It is attached, no second time, detached, and each is told once."""
        self.attach()
        self.assert_works()
        self.assertEqual(self.device().attachment, self.vm(self.frontend))
        with self.assertRaises(DeviceAlreadyAttached):
            self.attach()
        self.detach()
        self.assert_gone()
        self.assert_free()
        self.assertEqual(self.told, ["device-attach:usb", "device-detach:usb"])

    def test_020_unplug(self) -> None:
        """What is pulled out is attached no more, and is free when it is plugged in again."""
        self.attach()
        self.assert_works()
        self.unplug()
        self.assert_gone()
        self.wait_for(lambda: len(self.told) == 2, "nobody was told")
        self.plug()
        self.assert_free()
        self.assertEqual(self.told, ["device-attach:usb", "device-detach:usb"])

    def test_030_reconnect(self) -> None:
        """What is assigned is attached when it is plugged in, each time."""
        self.assign("auto-attach")
        for _ in range(2):
            self.unplug()
            self.assert_gone()
            self.plug()
            self.assert_works()

    def test_040_ask(self) -> None:
        """The user is asked, and the answer counts."""
        asked: list[list[str]] = []
        answers = ["", str(self.frontend.name)]

        async def confirm(_device: object, found: Any) -> str:
            asked.append([vm.name for vm in found])
            return answers[len(asked) - 1]

        extension = USBProxyExtension.__new__(USBProxyExtension)  # the one that there is
        with mock.patch.object(extension.assignments, "confirm", confirm):
            self.assign("ask-to-attach")
            self.unplug()
            self.plug()
            self.wait_for(lambda: asked, "nobody was asked")
            self.do(asyncio.sleep(2))
            self.assertEqual(self.attached(), [])
            self.unplug()
            self.plug()
            self.assert_works()
        self.assertEqual(asked, [[self.frontend.name]] * 2)

    def test_050_not_installed_in_the_frontend(self) -> None:
        """dom0 says what to install, and where."""
        self.hide(self.frontend, "qubes.USBAttach")
        with self.assertRaisesRegex(QubesException, f"in {self.frontend.name}; .*UP-911"):
            self.attach()
        self.assertEqual(self.attached(), [])
        self.assert_free()

    def test_060_not_installed_in_the_backend(self) -> None:
        """The same for the other side."""
        self.hide(self.backend, "qubes.USB")
        with self.assertRaisesRegex(QubesException, f"{self.backend.name} has no .*UP-622"):
            self.attach()
        self.assertEqual(self.attached(), [])
        self.assert_free()


class TC_11_Start(USBTestCase):
    """A frontend that starts, and ends."""

    frontend_starts = False

    def test_000_assigned(self) -> None:
        """What is assigned is attached when the qube starts, and is free when it ends."""
        self.assign("auto-attach")
        self.assertEqual(self.attached(), [])
        self.frontend.start()
        self.assert_works()
        self.do(self.frontend.kill())
        self.wait_for(lambda: not self.attached(), "dom0 says that it is attached")
        self.assert_free()


class TC_20_StubDomain(USBTestCase):
    """A frontend that has its devices in a stub domain."""

    def configure(self) -> None:
        """Make it such a qube."""
        self.frontend.virt_mode = "hvm"
        self.frontend.features["stubdom-qrexec"] = True

    def test_000_attach_detach(self) -> None:
        """It is attached to the qube, whoever does it."""
        self.attach()
        self.assert_works()
        self.detach()
        self.assert_gone()
        self.assert_free()

    def test_010_unplug(self) -> None:
        """It is pulled out."""
        self.attach()
        self.assert_works()
        self.unplug()
        self.assert_gone()


class TC_30_Policy(USBTestCase):
    """dom0's policy: what stands there before, and what an attach adds."""

    def call(self) -> bool:
        """Whether the frontend may make the call by itself."""
        service = f"qubes.USB+{self.device().port_id}"
        call = f"qrexec-client-vm {self.backend.name} {service} /bin/true"
        return self.shell(self.frontend, call)

    def test_000_only_for_the_call(self) -> None:
        """The rule of an attach goes with its call."""
        self.assertFalse(self.call())
        self.attach()
        self.assert_works()
        written = (USBProxyExtension.policy_folder / FILE_NAME).read_text()
        self.assertNotIn(self.frontend.name, written)
        self.detach()
        self.assertFalse(self.call())
        self.assert_free()

    def test_010_denied(self) -> None:
        """A rule of the user's counts first."""
        self.qrexec_policy("qubes.USB", self.frontend.name, self.backend.name, allow=False)
        with self.assertRaisesRegex(QubesException, "policy"):
            self.attach()
        self.assertEqual(self.attached(), [])
        self.assert_free()

    def test_020_allowed(self) -> None:
        """A standing rule is no obstacle, and stays."""
        self.qrexec_policy("qubes.USB", self.frontend.name, self.backend.name)
        for _ in range(2):
            self.attach()
            self.assert_works()
            self.detach()
            self.assert_free()


def list_tests() -> tuple[type[USBTestCase], ...]:
    """What does not depend on the template."""
    return (TC_30_Policy,)


def list_tests_for_template() -> tuple[type[USBTestCase], ...]:
    """What each template has to pass."""
    return TC_00_Services, TC_10_Devices, TC_11_Start, TC_20_StubDomain
