# SPDX-License-Identifier: GPL-2.0-or-later
"""What the exporter refuses, and what it does on request."""

from collections.abc import Iterator

import pytest

from .conftest import Qubes, guest_hash

RESETS = "dmesg | grep -c 'reset SuperSpeed USB device'"


@pytest.mark.parametrize(
    ("request_line", "sentence"),
    [
        ("", "the request on stdin has to be 'BACKEND DEVICE', as in 'sys-usb 2-1'"),
        ("sys-usb", "the request on stdin has to be 'BACKEND DEVICE', as in 'sys-usb 2-1'"),
        ("sys-usb 2-1 more", "the request on stdin has to be 'BACKEND DEVICE'"),
        ("sys-usb " + "1" * 300, "the request on stdin is too long"),
        ("sys-usb 2-\u0661", "the request on stdin is not ASCII"),
        ("sys-usb ../../etc", "'../../etc' names no USB device"),
        ("sys-usb $(reboot)", "'$(reboot)' names no USB device"),
        ("../work 2-1", "'../work' is no name of a qube"),
        ("@adminvm 2-1", "'@adminvm' is no name of a qube"),
        ("sys-usb 2-1:1.0", "'2-1:1.0' is one interface of a device"),
        ("sys-usb usb2", "'usb2' is a root hub"),
        ("sys-usb 0x12.0x34", "both are four hexadecimal digits"),
        ("sys-usb 9-9", "usb-export: no USB device 9-9 is plugged in"),
        ("sys-usb 0xdead.0xbeef", "usb-export: no USB device 0xdead.0xbeef is plugged in"),
    ],
)
def test_refused_request(qubes: Qubes, request_line: str, sentence: str) -> None:
    with qubes.lab.allowed("qubes.USB", "*", qubes.frontend, qubes.backend):
        done = qubes.lab.call(qubes.frontend, "qubes.USBAttach", f"{request_line}\n".encode())
    assert done.code != 0
    assert sentence in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1


def test_hub_is_refused(qubes: Qubes) -> None:
    qubes.backend.plug_hub("hub", port="3")
    hub = qubes.bus_id("bDeviceClass=09", "driver && test -e $d/maxchild")
    sentence = f"{hub} is a hub; name a device behind it instead [UP-206]"
    assert sentence in qubes.attach(hub).stderr.decode()
    assert qubes.driver(hub) == "usb"


def test_two_of_the_same_kind_are_not_guessed_between(qubes: Qubes, stick: str) -> None:
    other = qubes.plug_storage("other")
    done = qubes.attach("0x46f4.0x0001")
    assert f"matches {min(stick, other)} and {max(stick, other)}" in done.stderr.decode()


def test_device_from_another_qube_is_not_passed_on(qubes: Qubes, stick: str) -> None:
    assert qubes.attach(stick).code == 0
    qubes.frontend.wait_for("ls /sys/devices/platform/vhci_hcd.0/usb*/*-*/driver")
    local = qubes.frontend.run(
        "basename $(ls -d /sys/devices/platform/vhci_hcd.0/usb*/*-1 | grep -v :)"
    ).text
    with qubes.lab.allowed("qubes.USB", "*", qubes.backend, qubes.frontend):
        done = qubes.lab.call(qubes.backend, "qubes.USBAttach", f"work {local}\n".encode())
    assert "is itself attached here from another qube" in done.stderr.decode()
    assert qubes.detach(stick).code == 0


def test_taken_device_is_refused_and_not_disturbed(qubes: Qubes, stick: str) -> None:
    assert qubes.attach(stick).code == 0
    qubes.frontend.wait_for("test -b /dev/sda")
    before = guest_hash(qubes.frontend, "/dev/sda")
    done = qubes.attach("0x46f4.0x0001")
    assert f"USB device {stick} is attached already; detach it first" in done.stderr.decode()
    done = qubes.attach(stick)
    assert "this device is attached to this qube already" in done.stderr.decode()
    assert guest_hash(qubes.frontend, "/dev/sda") == before
    assert qubes.connected_to(stick) == b"work"
    assert qubes.detach(stick).code == 0


@pytest.mark.parametrize("victim", ["the exporter", "the exporter and its launcher"])
def test_killed_exporter(qubes: Qubes, stick: str, victim: str) -> None:
    assert qubes.attach(stick).code == 0
    pattern = "[l]aunch usb-export" if victim == "the exporter" else "[u]sb-export"
    qubes.backend.run(f"pkill -KILL -f '{pattern}'")
    if victim == "the exporter":
        # Its launcher cleans up, at once and unasked.
        qubes.backend.wait_for(f"readlink /sys/bus/usb/devices/{stick}/driver | grep -q usb$")
        qubes.backend.wait_for("! ls /run/qubes-usb-proxy/*.lock")
        assert qubes.await_clean() == []
    qubes.frontend.wait_for("! ls /run/qubes/usb-import-*")
    # Whatever was left, the next attach works.
    assert qubes.attach(stick).code == 0
    qubes.frontend.wait_for("test -b /dev/sda")
    assert qubes.take_back(stick).code == 0
    assert qubes.driver(stick) == "usb"


@pytest.mark.parametrize("victim", ["[l]aunch usb-import", "[u]sb-import"])
def test_killed_importer(qubes: Qubes, stick: str, victim: str) -> None:
    assert qubes.attach(stick).code == 0
    qubes.frontend.run(f"pkill -KILL -f '{victim} /run'")
    if victim.startswith("[l]aunch"):
        # Its shell cleans up, at once and unasked, also when nobody has its stderr any more.
        assert qubes.await_clean() == []
    qubes.backend.wait_for(f"readlink /sys/bus/usb/devices/{stick}/driver | grep -q usb$")
    assert qubes.attach(stick).code == 0
    qubes.frontend.wait_for("test -b /dev/sda")
    assert qubes.detach(stick).code == 0


def test_left_bound_by_another_program(qubes: Qubes, stick: str) -> None:
    driver = "/sys/bus/usb/drivers"
    qubes.backend.run(
        f"modprobe usbip-host; printf 'add {stick}' > {driver}/usbip-host/match_busid;"
        f" printf {stick} > {driver}/usb/unbind; printf {stick} > {driver}/usbip-host/bind"
    )
    assert qubes.attach(stick).code == 0
    assert qubes.take_back(stick).code == 0
    assert qubes.driver(stick) == "usb"


def test_reset_on_attach(qubes: Qubes, stick: str) -> None:
    qubes.backend.run("dmesg -C")
    assert qubes.attach(stick).code == 0
    assert qubes.backend.run(RESETS, check=False).text == "0"
    assert qubes.take_back(stick).code == 0
    assert qubes.backend.run(RESETS, check=False).text == "1"
    qubes.backend.write("/run/qubes-service/usb-reset-on-attach", "")
    try:
        assert qubes.attach(stick).code == 0
        assert qubes.backend.run(RESETS, check=False).text == "2"
    finally:
        qubes.backend.run("rm /run/qubes-service/usb-reset-on-attach")
    assert qubes.take_back(stick).code == 0


def test_reset_by_udev_property(qubes: Qubes, stick: str) -> None:
    rule = "/run/udev/rules.d/99-test.rules"
    qubes.backend.write(rule, 'SUBSYSTEM=="usb", ENV{QUBES_USB_RESET}="1"\n')
    event = f"udevadm control --reload && udevadm trigger --settle /sys/bus/usb/devices/{stick}"
    qubes.backend.run(f"{event}; dmesg -C")
    assert qubes.attach(stick).code == 0
    assert qubes.backend.run(RESETS, check=False).text == "1"
    assert qubes.take_back(stick).code == 0
    qubes.backend.run(f"rm {rule}; {event}")


def test_rule_for_the_nitrokey_bootloader_is_valid(qubes: Qubes, stick: str) -> None:
    rules = qubes.backend.read("/usr/lib/udev/rules.d/80-qubes-usb-reset.rules").decode()
    rules = rules.replace("20a0", "46f4").replace("42dd", "0001")
    qubes.backend.write("/run/udev/rules.d/80-test.rules", rules)
    qubes.backend.run("udevadm control --reload")
    show = f"udevadm settle; udevadm info /sys/bus/usb/devices/{stick}"
    qubes.backend.unplug("stick")
    assert qubes.plug_storage("stick") == stick
    try:
        assert "QUBES_USB_RESET=1" in qubes.backend.run(show).text
    finally:
        qubes.backend.run("rm /run/udev/rules.d/80-test.rules; udevadm control --reload")


def test_kept_from_drivers_until_plugged_again(qubes: Qubes, stick: str) -> None:
    qubes.backend.write("/run/qubes-service/usb-proxy-keep-unbound", "")
    try:
        for _ in range(2):
            assert qubes.attach(stick).code == 0
            qubes.frontend.wait_for("test -b /dev/sda")
            assert qubes.take_back(stick).code == 0
            assert qubes.driver(stick) == ""
            assert not qubes.backend.run(f"ls -d /sys/bus/usb/devices/{stick}:*", check=False).text
    finally:
        qubes.backend.run("rm /run/qubes-service/usb-proxy-keep-unbound")
    qubes.backend.unplug("stick")
    assert qubes.plug_storage("stick") == stick


def test_usb_reset_program(qubes: Qubes, stick: str) -> None:
    qubes.backend.run("dmesg -C")
    qubes.backend.run(f"/usr/lib/qubes/usb-reset {stick}")
    assert qubes.backend.run(RESETS, check=False).text == "1"
    assert qubes.driver(stick) == "usb"


def test_missing_module(qubes: Qubes, stick: str) -> None:
    for guest, module in ((qubes.backend, "usbip-host"), (qubes.frontend, "vhci-hcd")):
        guest.run(
            f"modprobe -r {module} || true; mkdir -p /run/modprobe.d;"
            f" echo 'install {module} /bin/false' > /run/modprobe.d/test.conf"
        )
        try:
            done = qubes.attach(stick)
            assert done.code != 0
            assert f"the kernel module {module} cannot be loaded" in done.stderr.decode()
        finally:
            guest.run("rm /run/modprobe.d/test.conf")
    assert qubes.driver(stick) == "usb"


def test_no_qubesdb(qubes: Qubes, stick: str) -> None:
    qubes.backend.run("touch /run/lab-qubesdb.off")
    try:
        done = qubes.attach(stick)
        # The frontend may have been faster, and told success; it is taken back all the same.
        if done.code:
            assert "so dom0 cannot see what is attached" in done.stderr.decode()
        qubes.backend.wait_for(f"readlink /sys/bus/usb/devices/{stick}/driver | grep -q usb$")
        qubes.frontend.wait_for("! ls /run/qubes/usb-import-*")
    finally:
        qubes.backend.run("rm /run/lab-qubesdb.off")
    # The lock's note says that there may be something left, which the next attach sees to.
    assert qubes.attach(stick).code == 0
    assert qubes.take_back(stick).code == 0


def test_without_root(qubes: Qubes, stick: str) -> None:
    config = "/etc/qubes/rpc-config/qubes.USB"
    qubes.backend.run(f"mv {config} /tmp/config")
    try:
        # sudo stands in for rpc-config, for the exporter alone.
        assert qubes.attach(stick).code == 0
        qubes.frontend.wait_for("test -b /dev/sda")
        assert qubes.take_back(stick).code == 0
        qubes.backend.run("mv /etc/sudoers.d/qubes-usb-proxy /tmp/sudoers")
        assert "sudo: a password is required" in qubes.attach(stick).stderr.decode()
    finally:
        qubes.backend.run(
            f"mv /tmp/config {config}; mv /tmp/sudoers /etc/sudoers.d/qubes-usb-proxy"
        )
    for guest, request in ((qubes.frontend, b"sys-usb 2-1\n"), (qubes.backend, b"2-1\n")):
        done = qubes.lab.call(guest, "qubes.USBDetach", request, user="user")
        assert b"this needs root" in done.stderr


def test_not_attached(qubes: Qubes, stick: str) -> None:
    done = qubes.detach(stick)
    assert done.code != 0
    assert f"{stick} of sys-usb is not attached to this qube" in done.stderr.decode()
    done = qubes.take_back(stick)
    assert done.code != 0
    assert f"USB device {stick} is not attached to any qube" in done.stderr.decode()


USBGUARD = """RuleFile=/run/usbguard/rules
ImplicitPolicyTarget=block
PresentDevicePolicy=keep
PresentControllerPolicy=keep
InsertedDevicePolicy=apply-policy
IPCAllowedUsers=root
"""


@pytest.fixture
def usbguard(qubes: Qubes) -> Iterator[None]:
    """The real usbguard in sys-usb, which blocks whatever is plugged in from now on."""
    run = qubes.backend.run
    run(
        "install -d -m 700 /run/usbguard /var/log/usbguard && install -m 600 /dev/null"
        " /run/usbguard/rules && ln -s /opt/usbguard /usr/bin/usbguard"
    )
    qubes.backend.write("/run/usbguard/conf", USBGUARD, 0o600)
    run("usbguard-daemon -f -c /run/usbguard/conf")
    qubes.backend.wait_for("usbguard list-devices")
    yield
    run("pkill usbguard-daemon; rm -r /usr/bin/usbguard /run/usbguard")
    run("for bus in /sys/bus/usb/devices/usb*; do echo 1 > $bus/authorized_default; done")


@pytest.mark.usefixtures("usbguard")
def test_usbguard_blocks_until_the_device_is_attached(qubes: Qubes) -> None:
    qubes.backend.plug_storage("stick", 1 << 20)
    stick = qubes.bus_id("idProduct=0001")
    authorized = f"cat /sys/bus/usb/devices/{stick}/authorized"
    assert qubes.backend.run(authorized).text == "0"
    assert qubes.attach(stick).code == 0
    qubes.frontend.wait_for("test -b /dev/sda")
    assert qubes.take_back(stick).code == 0


def test_usbguard_that_does_not_answer(qubes: Qubes, stick: str) -> None:
    """Without a daemon a device that is authorized all the same can be attached, no other."""
    qubes.backend.run("ln -s /opt/usbguard /usr/bin/usbguard")
    try:
        assert qubes.attach(stick).code == 0
        assert qubes.take_back(stick).code == 0
        qubes.backend.run(f"echo 0 > /sys/bus/usb/devices/{stick}/authorized")
        done = qubes.attach(stick)
        assert f"usbguard does not allow USB device {stick}" in done.stderr.decode()
        assert qubes.driver(stick) == "usb"
        assert qubes.backend.run(f"cat /sys/bus/usb/devices/{stick}/authorized").text == "0"
    finally:
        qubes.backend.run("rm /usr/bin/usbguard")
