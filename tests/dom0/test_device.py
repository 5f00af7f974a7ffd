# SPDX-License-Identifier: GPL-2.0-or-later
"""What qvm-usb and the device widget are told of a device."""

from __future__ import annotations

import importlib
import string
from pathlib import Path
from typing import Any

import pytest

from tests.dom0.clock import run
from tests.dom0.world import DEVICE_ID, INTERFACES, ROOT, World
from usb_proxy.dom0.device import USBDevice
from usb_proxy.dom0.qubesd import Port, QubesValueError
from usb_proxy.dom0.usb_ids import UsbIds


def exposed(world: World) -> list[Any]:
    return sorted((device for device in world.usb.devices["usb"]), key=lambda d: str(d.port_id))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def put(world: World, port: str, **entries: bytes) -> None:
    for entry, value in entries.items():
        path = f"{ROOT}/{port}/{entry.replace('_', '-')}"
        world.usb.untrusted_qdb[path] = value


def test_a_device(world: World, tmp_path: Path) -> None:
    put(world, "2-1_4", desc=b"1050:0407 Yubico YubiKey\\x204 0001", interfaces=INTERFACES)
    (device,) = exposed(world)
    assert (device.port_id, device.backend_domain) == ("2-1.4", world.usb)
    assert device.device_id == DEVICE_ID
    assert (device.manufacturer, device.name, device.serial) == ("Yubico", "YubiKey 4", "0001")
    assert [repr(interface) for interface in device.interfaces] == ["u030101", "u0b0000"]
    assert device.attachment is None
    (tmp_path / "usb.ids").write_text("#\n1050  Yubico.com\n\t0407  Yubikey 4\n")
    known = USBDevice(device.port, UsbIds(tmp_path / "usb.ids"))
    assert (known.vendor, known.product) == ("Yubico.com", "Yubikey 4")
    assert device == world.device("2-1.4") == known
    assert world.device("2-1.5") != device
    assert not isinstance(world.device("../2-1"), USBDevice)


def test_a_device_that_says_little(world: World) -> None:
    put(world, "2-1", desc=b"ffff:ffff   ")  # which is nobody's, and never will be
    put(world, "3-1", desc=b"\xff", interfaces=b"\xff", connected_to=b"\xff")
    put(world, "4-1", interfaces=b":030101:", connected_to=b"work")
    silent, broken = exposed(world)
    assert silent.device_id == "ffff:ffff::?******"
    assert broken.device_id == "0000:0000::?******"
    for device in (silent, broken):
        texts = (device.manufacturer, device.name, device.serial, device.product)
        assert texts == ("unknown",) * 4
        assert device.attachment is None
        assert "device" in device.description


@pytest.mark.parametrize(
    ("name", "holder"),
    [
        (b"work", "work"),
        (b"dom0", None),
        (b"sys-usb", None),
        (b"far", None),
        (b"nobody", None),
        (b"../work", None),
        (b"", None),
    ],
)
def test_attachment(world: World, name: bytes, holder: str | None) -> None:
    put(world, "2-1", desc=b"1050:0407", connected_to=name)
    assert world.holder() == holder
    for vm in (world.work, world.home, world.usb, world.dom0):
        attached = [str(one.device.port) for one in vm.devices["usb"].get_attached_devices()]
        assert attached == (["sys-usb:2-1"] if vm.name == holder else [])
    world.work.state = "Halted"
    assert world.holder() is None


def test_a_backend_that_does_not_answer_hides_no_other(world: World) -> None:
    class Dead:
        def list(self, _path: str) -> None:
            raise OSError("disconnected")

        read = list

    put(world, "2-1", desc=b"1050:0407", connected_to=b"work")
    world.home.untrusted_qdb = Dead()
    world.dom0.untrusted_qdb = None
    assert len(list(world.work.devices["usb"].get_attached_devices())) == 1
    assert list(world.home.devices["usb"]) == []
    world.usb.state = "Halted"
    assert exposed(world) == []
    assert not isinstance(world.device(), USBDevice)


def test_only_ports_of_the_class(world: World) -> None:
    with pytest.raises(QubesValueError):
        USBDevice(Port(world.usb, "2-1", "block"))


def test_it_survives_the_admin_api(world: World) -> None:
    """A real qubesd refuses the whole list for one wrong character of one device."""
    protocol: Any = importlib.import_module("qubes.device_protocol")
    if not hasattr(protocol.DeviceInfo, "serialize"):
        pytest.skip("the model has no admin API: set QUBES_CORE_ADMIN")
    noise = bytes(range(1, 256)).replace(b" ", b"")
    put(world, "2-1", desc=b"1050:0407 " + noise + b" " + noise + b" " + noise)
    put(world, "3-1", desc=b"1050:0407 x' port_id='9-9 y", interfaces=noise)
    for device in exposed(world):
        line = f"{device.port_id}:{device.device_id} ".encode() + device.serialize()
        again = protocol.DeviceInfo.deserialize(line, world.usb, "usb")
        assert (again.device_id, again.port) == (device.device_id, device.port)
        assert (again.name, again.manufacturer) == (device.name, device.manufacturer)
        argument = device.repr_for_qarg
        assert set(argument) <= set(string.ascii_letters + string.digits + "#+-.=@_")
        parsed = protocol.VirtualDevice.from_qarg(argument, "usb", world.app.domains)
        # A `+` of a serial comes out as `:`, as it does with the existing extension.
        assert str(parsed) == str(device).replace("+", ":")


def test_listing_does_not_wait(world: World) -> None:
    async def story() -> None:
        world.plug()
        assert [str(device.port) for device in exposed(world)] == ["sys-usb:2-1"]

    assert run(story()) == 0


@pytest.mark.parametrize(
    ("desc", "interfaces", "identity"),
    [
        *(
            (f"1050:0407 V M 1{mark}2".encode(), b":030101:", f"1050:0407:1{mark}2:u030101")
            for mark in "#+-.:=@_"
        ),
        (b"1050:0407 V M ", b":030101:", "1050:0407::u030101"),
        (b"1050:0407 V M unknown", b":030101:", "1050:0407:unknown:u030101"),
        (b"\xff", b":030101:0B0000:", "0000:0000::u030101u0b0000"),
        (b"1050:0407 V M 1", b"", "1050:0407:1:?******"),
        (b"1050:0407 V M a______b", b":030101:", "1050:0407:a______b:u030101"),
        # An assignment of more could never be made: its `_` came out of the call as `?******`.
        (b"1050:0407 V M a_________b", b":030101:", "1050:0407:a______b:u030101"),
    ],
)
def test_identities_are_those_of_stored_assignments(
    world: World, desc: bytes, interfaces: bytes, identity: str
) -> None:
    put(world, "2-1", desc=desc, interfaces=interfaces)
    (device,) = exposed(world)
    assert device.device_id == identity
