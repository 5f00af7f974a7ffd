# SPDX-License-Identifier: GPL-2.0-or-later
"""What arrives is what was announced: no driver of work gets anything else."""

import re
from collections.abc import Iterator

import pytest

from tests.lab.qubes import Qubes

from .test_attach import disk

STICK = "46f4:0001 080650"
SWITCHES = "/sys/devices/platform/vhci_hcd.*/usb*/interface_authorized_default"


@pytest.fixture(autouse=True)
def nothing_is_left(qubes: Qubes) -> Iterator[None]:
    """The buses are as before, and nothing is claimed."""
    yield
    qubes.await_clean()
    assert qubes.frontend.run(f"cat {SWITCHES} | sort -u").text == "1"
    left = qubes.frontend.run("ls /run/qubes-usb-proxy | grep -E 'gate|announced|bus'", check=False)
    assert left.text == ""


def test_what_was_announced_works(qubes: Qubes, stick: str) -> None:
    done = qubes.attach(stick, STICK)
    assert (done.code, done.stderr) == (0, b"")
    disk(qubes, "stick")
    assert qubes.detach(stick).code == 0


def test_any_interface(qubes: Qubes, stick: str) -> None:
    assert qubes.attach(stick, "46f4:0001 *").code == 0
    disk(qubes, "stick")
    assert qubes.take_back(stick).code == 0


@pytest.mark.parametrize("announced", ["046d:0825 0e0100", "46f4:0001 0e0100", "046d:0825 *"])
def test_another_device_is_taken_out_again(qubes: Qubes, stick: str, announced: str) -> None:
    with qubes.witness() as seen:
        done = qubes.attach(stick, announced)
        assert done.code == 6
        assert b"[UP-64" in done.stderr
        assert done.stderr.count(b"\n") == 1
        qubes.await_clean()
    assert any("usb_device" in line or "/usb" in line for line in seen)
    assert not [line for line in seen if "(block)" in line or "(scsi)" in line]
    # What it is can be attached after all.
    assert qubes.attach(stick, STICK).code == 0
    disk(qubes, "stick")
    assert qubes.detach(stick).code == 0


def test_a_keyboard_that_says_stick_types_nothing(qubes: Qubes) -> None:
    qubes.backend.plug_keyboard("keyboard")
    keyboard = qubes.bus_id("product=QEMU USB Keyboard")
    product = qubes.backend.run(
        f"cd /sys/bus/usb/devices/{keyboard}; echo $(cat idVendor):$(cat idProduct)"
    ).text
    with qubes.witness() as seen:
        done = qubes.attach(keyboard, f"{product} 080650")
        assert done.code == 6 and b"[UP-641]" in done.stderr
        qubes.await_clean()
    assert not [line for line in seen if "(input)" in line or "(hid)" in line]
    assert qubes.attach(keyboard, f"{product} 030101").code == 0
    qubes.frontend.wait_for("ls /dev/input/by-id/*event-kbd")
    assert qubes.detach(keyboard).code == 0


def test_whatever_others_plug_in_there_works(qubes: Qubes, stick: str) -> None:
    """The bus is judged for one device; an attach without announcement goes on as before."""
    other = qubes.plug_storage("other")
    with qubes.one_hub():
        assert qubes.attach(stick, STICK).code == 0
        assert qubes.attach(other, "").code == 0
        disk(qubes, "stick")
        disk(qubes, "other")
        assert qubes.detach(stick).code == 0
        assert qubes.detach(other).code == 0


def test_whose_driver_wants_two_interfaces_and_that_nobody_announced(qubes: Qubes) -> None:
    """A network card, on a bus where a stick is judged."""
    stick = qubes.plug_storage("stick", bus="ehci.0")
    with qubes.one_hub():
        assert qubes.attach(stick).code == 0
        # Two drivers match it, and that which is loaded first gets it, on any bus.
        qubes.frontend.run("modprobe -a cdc_ether rndis_host cdc_subset")
        qubes.backend.plug("usb-net", "net")
        card = qubes.bus_id("product=RNDIS/QEMU USB Network Device")
        assert qubes.attach(card, "").code == 0
        interfaces = "/sys/devices/platform/vhci_hcd.*/usb*/*-2/*:1.0"
        qubes.frontend.wait_for(f"ls -d {interfaces}/net/*")
        check_that_a_late_rule_asks_again(qubes, qubes.frontend.run(f"ls -d {interfaces}").text)
        assert qubes.detach(card).code == 0
        assert qubes.detach(stick).code == 0


def check_that_a_late_rule_asks_again(qubes: Qubes, interface: str) -> None:
    """udev runs a rule's program after the rule: an announced device may have come meanwhile."""
    work, bus_id = qubes.frontend, interface.split("/")[-2]
    work.run(f"echo 0 > {interface}/authorized")
    said = work.run(f"udevadm test --action=add {interface} 2>&1").text
    # As systemd 252 prints it, and 262.
    found = re.search(r"(?:run: '|RUN.program. : )/bin/sh -c '(.*?)''?$", said, re.MULTILINE)
    assert found, said
    claim = f"/run/qubes-usb-proxy/announced-{bus_id}"
    for before, authorized in ((f"touch {claim}", "0"), (f"rm {claim}", "1")):
        work.run(f"{before}; {found[1]}", check=False)
        assert work.run(f"cat {interface}/authorized").text == authorized


def test_a_killed_importer_leaves_the_bus_as_it_was(qubes: Qubes, stick: str) -> None:
    assert qubes.attach(stick, STICK).code == 0
    qubes.frontend.run("pkill -9 -f '^/usr/bin/python3 -IS .*usb-import'; true")


def test_the_service_turns_it_off(qubes: Qubes, stick: str) -> None:
    flag = "/run/qubes-service/usb-proxy-any-interface"
    qubes.frontend.run(f"mkdir -p /run/qubes-service; touch {flag}")
    try:
        assert qubes.attach(stick, "046d:0825 0e0100").code == 0
        disk(qubes, "stick")
        assert qubes.detach(stick).code == 0
    finally:
        qubes.frontend.run(f"rm {flag}")


@pytest.mark.parametrize(
    ("second", "id"),
    [
        (b"../x 123", "UP-229"),
        (b"46f4:0001 080650\0", "UP-229"),
        (b"46f4:0001 080650\r", "UP-229"),
        (b"46f4:0001 08\xff\xfe50", "UP-229"),
        (b"46f4:0001 $(reboot)", "UP-229"),
        (b"46f4:0001" + b" 080650" * 33, "UP-229"),
        (b"46f4:0001" + b" 080650" * 60, "UP-212"),
        (b" ", "UP-229"),
        (b"46f4:0001 080650\n046d:0825 *\n", ""),  # Of a third line nothing is known.
        (b"", ""),
    ],
)
def test_garbage(qubes: Qubes, stick: str, second: bytes, id: str) -> None:
    with qubes.lab.allowed("qubes.USB", stick, qubes.frontend, qubes.backend):
        request = f"sys-usb {stick}\n".encode() + second + b"\n"
        done = qubes.lab.call(qubes.frontend, "qubes.USBAttach", request)
    if id:
        assert (done.code, done.stderr.count(b"\n")) == (2, 1)
        assert done.stderr.decode("ascii").endswith(f"[{id}]\n")
        assert done.stderr[:-1].decode("ascii").isprintable()
    else:
        assert (done.code, done.stderr) == (0, b"")
        disk(qubes, "stick")
        assert qubes.detach(stick).code == 0


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox sh"])
def test_others_read_the_first_line_alone(qubes: Qubes, shell: str) -> None:
    """As the other implementations do, the stub domain's included."""
    work = qubes.frontend
    if work.run(f"command -v {shell.partition(' ')[0]}", check=False).code:
        pytest.skip(f"no {shell} in the guest")
    said = work.run(
        f"{shell} -c 'read -r domain device; echo \"$domain+$device\"'",
        stdin=b"sys-usb 2-1\n46f4:0001 080650 030101\n",
    )
    assert said.text == "sys-usb+2-1"
