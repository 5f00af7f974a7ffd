# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices of every kind, attached and taken back between two kernels."""

import os
import time
import wave
from pathlib import Path

import pytest

from tests.lab.qubes import Qubes, guest_hash

from .guard import running_usbguard

SECTORS = 2048


def disk(qubes: Qubes, serial: str) -> str:
    """The block device of a stick in work, once it is there."""
    name = f"/dev/disk/by-id/usb-QEMU_QEMU_HARDDISK_{serial}-0:0"
    qubes.frontend.wait_for(f"test -b {name}")
    return name


def test_superspeed_storage_carries_data_both_ways(qubes: Qubes, tmp_path: Path) -> None:
    image = tmp_path / "stick.img"
    image.write_bytes(os.urandom(SECTORS * 512))
    stick = qubes.plug_storage("stick", image)
    before = guest_hash(qubes.backend, "/dev/sda")
    done = qubes.attach(stick)
    assert (done.code, done.stderr) == (0, b"")
    assert qubes.connected_to(stick) == b"work"
    assert qubes.driver(stick) == "usbip-host"
    device = disk(qubes, "stick")
    assert guest_hash(qubes.frontend, device) == before
    qubes.frontend.run(f"dd if=/dev/urandom of={device} bs=64k count=16 conv=fsync")
    after = guest_hash(qubes.frontend, device)
    assert after != before
    assert qubes.detach(stick).code == 0
    qubes.frontend.run(f"! test -e {device}")
    assert guest_hash(qubes.backend, "/dev/sda") == after


def test_high_speed_device(qubes: Qubes) -> None:
    stick = qubes.plug_storage("slow", bus="ehci.0")
    assert qubes.attach(stick).code == 0
    disk(qubes, "slow")
    assert qubes.frontend.run("cat /sys/bus/usb/devices/*-*/speed | sort -u").text == "480"
    assert qubes.take_back(stick).code == 0


def test_device_behind_a_hub(qubes: Qubes) -> None:
    qubes.backend.plug_hub("hub", port="3")
    stick = qubes.plug_storage("deep", port="3.2")
    assert stick.endswith(".2")
    assert qubes.attach(stick).code == 0
    assert qubes.connected_to(stick) == b"work"
    disk(qubes, "deep")
    assert qubes.detach(stick).code == 0


def test_by_vendor_and_product(qubes: Qubes, stick: str) -> None:
    assert qubes.attach("0x46f4.0x0001").code == 0
    record = qubes.frontend.read("/run/qubes/usb-import-sys-usb-0x46f4.0x0001.state")
    assert record.split(b"\n")[0].isdigit()
    assert qubes.connected_to(stick) == b"work"
    assert qubes.detach("0x46f4.0x0001").code == 0


@pytest.mark.parametrize("side", ["frontend", "backend"])
def test_detach_leaves_the_device_with_its_driver_when_it_returns(
    qubes: Qubes, stick: str, side: str
) -> None:
    assert qubes.attach(stick).code == 0
    done = qubes.detach(stick) if side == "frontend" else qubes.take_back(stick)
    assert (done.code, done.stderr) == (0, b"")
    if side == "backend":
        assert qubes.driver(stick) == "usb"
        assert qubes.connected_to(stick) is None
    # Attaching again at once has to work, whatever is still being cleaned up.
    assert qubes.attach(stick).code == 0
    assert qubes.take_back(stick).code == 0
    assert qubes.driver(stick) == "usb"


def test_keyboard_types_in_the_frontend(qubes: Qubes) -> None:
    qubes.backend.plug_keyboard("keyboard")
    keyboard = qubes.bus_id("product=QEMU USB Keyboard")
    assert qubes.attach(keyboard).code == 0
    event = "/dev/input/by-id/usb-QEMU_QEMU_USB_Keyboard*-event-kbd"
    qubes.frontend.wait_for(f"test -e {event}")
    # udev's list of devices that may fall asleep has this one, and USB/IP could not wake it up.
    asleep = "/sys/devices/platform/vhci_hcd.*/usb*/*-*/power/control"
    assert qubes.frontend.run(f"cat {asleep}").text == "on"
    # struct input_event is 24 bytes: EV_MSC, EV_KEY and EV_SYN for the first press.
    listening = qubes.frontend.start_command(f"exec dd if=$(ls {event}) bs=72 count=1")
    qubes.frontend.wait_for("pgrep -x dd")
    qubes.backend.send_key("a")
    events = listening.wait(30).stdout
    assert (1, 30, 1) in [
        tuple(
            int.from_bytes(events[n + at : n + at + size], "little")
            for at, size in ((16, 2), (18, 2), (20, 4))
        )
        for n in range(0, len(events), 24)
    ]
    assert qubes.detach(keyboard).code == 0


def test_audio_plays_through(qubes: Qubes, tmp_path: Path) -> None:
    heard = tmp_path / "heard.wav"
    qubes.backend.plug_audio("audio", heard)
    audio = qubes.bus_id("product=QEMU USB Audio")
    assert qubes.attach(audio).code == 0
    qubes.frontend.wait_for("grep -q QEMU /proc/asound/cards")
    tone = b"".join(n.to_bytes(2, "little") * 2 for n in range(1, 24001))
    qubes.frontend.run(
        "aplay -q -D hw:0,0 -t raw -f S16_LE -c 2 -r 48000 -", stdin=tone, timeout=120
    )
    assert qubes.detach(audio).code == 0
    qubes.backend.unplug("audio")
    with wave.open(str(heard)) as file:
        sound = file.readframes(file.getnframes())
    pairs = {sound[n : n + 4] for n in range(0, len(sound) - 3, 4)}
    sent = {tone[n : n + 4] for n in range(0, len(tone), 4)}
    # A player that is emulated on a busy machine may start late; most of the ramp has to be there.
    assert len(sent & pairs) > len(sent) // 2


def test_two_devices_at_once(qubes: Qubes, stick: str) -> None:
    other = qubes.plug_storage("other", bus="ehci.0")
    calls = []
    for device in (stick, other):
        qubes.lab.allow("qubes.USB", device, qubes.frontend, qubes.backend)
        calls.append(qubes.start_attach(device))
    assert [call.wait(60).code for call in calls] == [0, 0]
    disk(qubes, "stick")
    disk(qubes, "other")
    assert qubes.detach(stick).code == 0
    assert qubes.connected_to(other) == b"work"
    disk(qubes, "other")
    assert qubes.detach(other).code == 0


def test_safely_removed_in_the_frontend(qubes: Qubes, stick: str) -> None:
    """As `udisksctl power-off` does it: the connection stays, and the port is of no use."""
    assert qubes.attach(stick).code == 0
    qubes.frontend.run(f"echo 1 > {qubes.place()}/remove")
    assert qubes.await_clean(30) == []
    assert qubes.driver(stick) == "usb"
    key = f"/qubes-usb-devices/{stick}/x-ended"
    assert qubes.lab.qubesdb_list(qubes.backend, key)[key] == b"detached"


@pytest.mark.parametrize("module", ["usbip_host", "vhci_hcd"])
def test_a_driver_is_unloaded(qubes: Qubes, stick: str, module: str) -> None:
    guest = qubes.backend if module == "usbip_host" else qubes.frontend
    assert qubes.attach(stick).code == 0
    guest.run(f"rmmod {module}")
    assert qubes.await_clean() == []
    assert qubes.driver(stick) == "usb"
    assert qubes.attach(stick).code == 0
    assert qubes.detach(stick).code == 0


def test_unplugged_while_attached_and_plugged_again(qubes: Qubes, stick: str) -> None:
    assert qubes.attach(stick).code == 0
    disk(qubes, "stick")
    qubes.backend.unplug("stick")
    assert qubes.await_clean() == []
    again = qubes.plug_storage("stick")
    assert again == stick
    assert qubes.driver(stick) == "usb"
    assert qubes.attach(stick).code == 0
    disk(qubes, "stick")
    assert qubes.detach(stick).code == 0


def test_detach_all_before_suspend(qubes: Qubes, stick: str) -> None:
    hook = "/etc/qubes/suspend-pre.d/usb-detach-all.sh"
    for guest in (qubes.frontend, qubes.backend):
        assert qubes.attach(stick).code == 0
        assert guest.run(hook).stderr == b""
        guest.run(hook)
        qubes.backend.wait_for(f"readlink /sys/bus/usb/devices/{stick}/driver | grep -q usb$")
        qubes.frontend.wait_for("! ls /run/qubes/usb-import-*")


AT_ONCE = int(os.environ.get("LAB_AT_ONCE", "10"))


def test_detach_in_the_backend_and_attach_at_once(qubes: Qubes, stick: str) -> None:
    """While the disk is scanned: the frontend's kernel waits for an answer that nobody gives."""
    failures = []
    for _ in range(AT_ONCE):
        done = qubes.attach(stick)
        if done.code:
            failures.append(done.stderr)
        time.sleep(0.8)
        qubes.take_back(stick)
    assert failures == []


def test_what_is_attached_is_refused_at_once(qubes: Qubes, stick: str) -> None:
    assert qubes.attach(stick).code == 0
    done = qubes.attach(stick)
    assert done.code == 4
    assert b"[UP-403]" in done.stderr
    disk(qubes, "stick")
    assert qubes.detach(stick).code == 0


def test_nodes_are_there_with_their_rights_when_success_is_told(qubes: Qubes) -> None:
    qubes.backend.plug_serial("serial")
    serial = qubes.bus_id("product=QEMU USB SERIAL")
    rule = "/run/udev/rules.d/10-slow.rules"
    qubes.frontend.write(rule, 'SUBSYSTEM=="tty", PROGRAM="/bin/sleep 1"\n')
    qubes.frontend.run("udevadm control --reload; modprobe ftdi_sio")
    try:
        assert qubes.attach(serial).code == 0
        assert qubes.frontend.run("stat -c %G /dev/ttyUSB0").text == "dialout"
        assert qubes.detach(serial).code == 0
    finally:
        qubes.frontend.run(f"rm {rule}; udevadm control --reload")


def mend_as_told(qubes: Qubes, stick: str, mark: bytes) -> None:
    """An attach fails in work, with a command that makes the next one succeed."""
    before = qubes.leftovers()  # A switch that the test has turned off.
    done = qubes.attach(stick)
    assert done.code == 7
    assert mark in done.stderr
    assert qubes.await_clean(besides=before) == []
    assert qubes.driver(stick) == "usb"
    command = done.stderr.decode().partition("run: ")[2].partition(" [")[0]
    qubes.frontend.run(command.replace("sudo ", ""))
    assert qubes.attach(stick).code == 0
    disk(qubes, "stick")
    assert qubes.detach(stick).code == 0


def test_a_device_that_the_frontend_does_not_authorize_is_no_success(
    qubes: Qubes, stick: str
) -> None:
    qubes.frontend.run("modprobe vhci-hcd")
    buses = "/sys/devices/platform/vhci_hcd.*/usb*/authorized_default"
    qubes.frontend.run(f"for bus in {buses}; do echo 0 > $bus; done")
    try:
        mend_as_told(qubes, stick, b"[UP-751]")
    finally:
        qubes.frontend.run(f"for bus in {buses}; do echo 1 > $bus; done")


@pytest.mark.parametrize(
    ("switch", "mark"),
    [
        ("devices/platform/vhci_hcd.*/usb*/interface_authorized_default", b"[UP-761]"),
        ("bus/usb/drivers_autoprobe", b"[UP-762]"),
    ],
)
def test_a_kernel_that_gives_no_drivers_is_no_success(
    qubes: Qubes, stick: str, monkeypatch: pytest.MonkeyPatch, switch: str, mark: bytes
) -> None:
    """Where dom0 has announced nothing: what was announced gets its drivers from the importer."""
    monkeypatch.setattr(qubes, "announces", False)
    run = qubes.frontend.run
    run(f"modprobe vhci-hcd; for switch in /sys/{switch}; do echo 0 > $switch; done")
    try:
        doctor = run("qubes-usb-proxy doctor --json", check=False)
        assert doctor.code == 9, doctor.text
        assert switch.rpartition("/")[2] in doctor.text
        mend_as_told(qubes, stick, mark)
        assert run("qubes-usb-proxy doctor").code == 0
    finally:
        run(f"for switch in /sys/{switch}; do echo 1 > $switch; done")


def test_virtual_hubs_that_came_while_no_drivers_were_given(qubes: Qubes, stick: str) -> None:
    """As in a qube that gives none from its start on: the device is not to blame."""
    switch = "/sys/bus/usb/drivers_autoprobe"
    run = qubes.frontend.run
    run(f"modprobe usbcore; ! lsmod | grep vhci_hcd || modprobe -r vhci-hcd; echo 0 > {switch}")
    try:
        mend_as_told(qubes, stick, b"[UP-762]")
    finally:
        run(f"echo 1 > {switch}; modprobe -r vhci-hcd")


@pytest.mark.parametrize(("target", "mark"), [("block", b"[UP-750]"), ("reject", b"[UP-758]")])
def test_a_usbguard_of_the_frontend_is_named(
    qubes: Qubes, stick: str, target: str, mark: bytes
) -> None:
    qubes.frontend.run("modprobe vhci-hcd")
    with running_usbguard(qubes.frontend, target):
        mend_as_told(qubes, stick, mark)


def test_a_virtual_hub_that_is_not_authorized(qubes: Qubes, stick: str) -> None:
    """As a usbguard leaves one that was loaded after it: the device is not to blame."""
    hubs = "/sys/devices/platform/vhci_hcd.*/usb*/authorized"
    qubes.frontend.run(f"modprobe vhci-hcd; for hub in {hubs}; do echo 0 > $hub; done")
    try:
        doctor = qubes.frontend.run("qubes-usb-proxy doctor", check=False)
        assert (doctor.code, "blocks its own virtual hubs" in doctor.text) == (7, True)
        mend_as_told(qubes, stick, b"[UP-757]")
    finally:
        qubes.frontend.run(f"for hub in {hubs}; do echo 1 > $hub; done")
