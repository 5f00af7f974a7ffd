# SPDX-License-Identifier: GPL-2.0-or-later
"""What the exporter refuses, and what it does on request."""

from collections.abc import Iterator

import pytest

from tests.lab.qubes import Qubes, guest_hash

from .guard import running_usbguard
from .test_attach import disk

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
        ("../work 2-1", "'../work' is not the name of a qube"),
        ("@adminvm 2-1", "'@adminvm' is not the name of a qube"),
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
    qubes.frontend.wait_for("ls /sys/devices/platform/vhci_hcd.*/usb*/*-*/driver")
    local = qubes.frontend.run(
        "basename $(ls -d /sys/devices/platform/vhci_hcd.*/usb*/*-1 | grep -v :)"
    ).text
    with qubes.lab.allowed("qubes.USB", "*", qubes.backend, qubes.frontend):
        done = qubes.lab.call(qubes.backend, "qubes.USBAttach", f"work {local}\n".encode())
    assert "is itself attached here from another qube" in done.stderr.decode()
    assert qubes.detach(stick).code == 0


def test_taken_device_is_refused_and_not_disturbed(qubes: Qubes, stick: str) -> None:
    assert qubes.attach(stick).code == 0
    disk(qubes, "stick")
    before = guest_hash(qubes.frontend, disk(qubes, "stick"))
    done = qubes.attach("0x46f4.0x0001")
    assert f"USB device {stick} is attached already; detach it first" in done.stderr.decode()
    done = qubes.attach(stick)
    assert "this device is attached to this qube already" in done.stderr.decode()
    assert guest_hash(qubes.frontend, disk(qubes, "stick")) == before
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
    disk(qubes, "stick")
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
    disk(qubes, "stick")
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
    rule = 'SUBSYSTEM=="usb", ENV{QUBES_USB_RESET}="1"\n'
    with qubes.udev_rule(rule, stick, "QUBES_USB_RESET=1"):
        qubes.backend.run("dmesg -C")
        assert qubes.attach(stick).code == 0
        assert qubes.backend.run(RESETS, check=False).text == "1"
        assert qubes.take_back(stick).code == 0


def test_rule_for_the_nitrokey_bootloader_is_valid(qubes: Qubes, stick: str) -> None:
    rules = qubes.backend.read("/usr/lib/udev/rules.d/80-qubes-usb-reset.rules").decode()
    rules = rules.replace("20a0", "46f4").replace("42dd", "0001")
    with qubes.udev_rule(rules, stick, "QUBES_USB_RESET=1"):
        qubes.backend.unplug("stick")
        assert qubes.plug_storage("stick") == stick
        show = f"udevadm settle; udevadm info /sys/bus/usb/devices/{stick}"
        assert "QUBES_USB_RESET=1" in qubes.backend.run(show).text


def test_kept_from_drivers_until_plugged_again(qubes: Qubes, stick: str) -> None:
    qubes.backend.write("/run/qubes-service/usb-proxy-keep-unbound", "")
    try:
        for _ in range(2):
            assert qubes.attach(stick).code == 0
            disk(qubes, "stick")
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
    """The service says what was changed, and goes no other way to root."""
    config = "/etc/qubes/rpc-config/qubes.USB"
    qubes.backend.run(f"mv {config} /tmp/config")
    try:
        said = qubes.attach(stick).stderr.decode()
        assert f"{config} was changed where the device is plugged in" in said
        assert said.count("\n") == 1 and "sudo" not in said
        repair = said.partition("restore it: ")[2].partition(" [UP-740]")[0]
        qubes.backend.run(repair)
        assert qubes.attach(stick).code == 0
        assert qubes.take_back(stick).code == 0
    finally:
        qubes.backend.run(f"mv /tmp/config {config}")
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


@pytest.fixture
def usbguard(qubes: Qubes) -> Iterator[None]:
    """The real usbguard in sys-usb, which blocks whatever is plugged in from now on."""
    with running_usbguard(qubes.backend, "block"):
        yield


def is_blocked(qubes: Qubes, bus_id: str) -> bool:
    """Whether no driver of sys-usb can have a device."""
    folder = f"/sys/bus/usb/devices/{bus_id}"
    has_interfaces = qubes.backend.run(f"ls -d {folder}:*", check=False).text != ""
    return qubes.backend.read(f"{folder}/authorized") == b"0\n" and not has_interfaces


def end_export(qubes: Qubes, bus_id: str, end: str) -> None:
    """End an attachment in one of the ways that there are, and wait for the device."""
    if end == "in sys-usb":
        assert qubes.take_back(bus_id).code == 0
    elif end == "in work":
        assert qubes.detach(bus_id).code == 0
    elif end == "exporter killed":
        qubes.backend.run("pkill -KILL -f '[l]aunch usb-export'")
    else:
        # Nobody is left to clean up, until somebody looks.
        qubes.backend.run(
            "pkill -KILL -f '[u]sb-export'; /usr/lib/qubes/usb-proxy/launch usb-repair"
        )
    qubes.backend.wait_for(f"readlink /sys/bus/usb/devices/{bus_id}/driver | grep -q usb$")
    qubes.backend.wait_for("! ls /run/qubes-usb-proxy/*.lock")
    qubes.frontend.wait_for("! ls /run/qubes/usb-import-*")


ENDS = ["in sys-usb", "in work", "exporter killed", "all killed"]


def test_authorized_default_of_nothing(qubes: Qubes) -> None:
    """A hardened sys-usb, where the kernel configures nothing that is plugged in."""
    run = qubes.backend.run
    run("for bus in /sys/bus/usb/devices/usb*; do echo 0 > $bus/authorized_default; done")
    try:
        qubes.backend.plug_storage("stick", 1 << 20)
        stick = qubes.bus_id("idProduct=0001")
        assert is_blocked(qubes, stick)
        for end in ENDS:
            assert qubes.attach(stick).code == 0
            disk(qubes, "stick")
            end_export(qubes, stick, end)
            assert is_blocked(qubes, stick), end
    finally:
        run("for bus in /sys/bus/usb/devices/usb*; do echo 1 > $bus/authorized_default; done")


@pytest.mark.parametrize("end", ENDS)
def test_an_interface_that_is_turned_off_gets_no_driver_again(
    qubes: Qubes, stick: str, end: str
) -> None:
    """The kernel would turn it on when the device is back, so that stays blocked as a whole."""
    qubes.backend.run(f"echo 0 > /sys/bus/usb/devices/{stick}:1.0/authorized")
    assert qubes.attach(stick).code == 0
    disk(qubes, "stick")
    end_export(qubes, stick, end)
    assert is_blocked(qubes, stick)


CUT_OFF = "pkill -STOP -f '[u]sb-export'; {}; pkill -KILL -f '[u]sb-export'"
"""Nobody ends the connection meanwhile, which would make the kernel reset the device."""


@pytest.mark.parametrize("end", ["it is back", "it is blocked", "nobody gives it back"])
def test_one_that_was_cut_off_in_the_middle_of_a_transfer(
    qubes: Qubes, stick: str, end: str
) -> None:
    """Whoever has it next can use it: it is reset, as in the end of a session."""
    release = "/usr/lib/qubes/usb-proxy/launch usb-repair"
    if end == "it is blocked":
        qubes.backend.run(f"echo 0 > /sys/bus/usb/devices/{stick}:1.0/authorized")
    elif end == "nobody gives it back":
        release = f"echo {stick} > /sys/bus/usb/drivers/usbip-host/unbind"
    exporter = "pkill -KILL -f '[l]aunch [u]sb-export'"
    for _ in range(3):
        assert qubes.attach(stick).code == 0
        path = disk(qubes, "stick")
        reading = f"while dd if={path} of=/dev/null iflag=direct bs=256k 2>/dev/null; do :; done"
        reads = qubes.frontend.start_command(reading)
        qubes.frontend.wait_for("set -- $(cat /sys/class/block/sda/stat); [ $3 -gt 4096 ]")
        qubes.backend.run(CUT_OFF.format(f"{exporter}; {release}"))
        qubes.frontend.wait_for("! ls /run/qubes/usb-import-*")
        reads.wait(60)
    assert qubes.attach(stick).code == 0
    disk(qubes, "stick")
    assert qubes.detach(stick).code == 0


@pytest.mark.parametrize("daemon", ["runs", "has stopped"])
@pytest.mark.usefixtures("usbguard")
def test_usbguard_blocks_but_while_the_device_is_attached(qubes: Qubes, daemon: str) -> None:
    qubes.backend.plug_storage("stick", 1 << 20)
    stick = qubes.bus_id("idProduct=0001")
    assert is_blocked(qubes, stick)
    if daemon == "has stopped":
        qubes.backend.run("pkill usbguard-daemon; while pgrep usbguard-daemon; do :; done")
    for end in ENDS:
        assert qubes.attach(stick).code == 0
        disk(qubes, "stick")
        end_export(qubes, stick, end)
        assert is_blocked(qubes, stick), end
        if daemon == "runs":  # It hears of it a moment later.
            listed = f"usbguard list-devices | grep 'via-port \"{stick}\"'"
            qubes.backend.wait_for(f"{listed} | grep -q '^[0-9]*: block '")


@pytest.mark.long
@pytest.mark.usefixtures("usbguard")
def test_usbguards_own_rules_stay_as_they_are(qubes: Qubes) -> None:
    """A device that one of them allows is allowed before, and after."""
    qubes.backend.plug_storage("stick", 1 << 20)
    stick = qubes.bus_id("idProduct=0001")
    assert is_blocked(qubes, stick)
    for rule in ("", "allow id 46f4:0001"):
        if rule:
            qubes.backend.unplug("stick")
            qubes.backend.run(f"usbguard append-rule '{rule}'")
            assert qubes.plug_storage("stick") == stick
        before = qubes.backend.run("usbguard list-rules").text
        assert rule in before
        for end in ENDS:
            assert qubes.attach(stick).code == 0
            disk(qubes, "stick")
            end_export(qubes, stick, end)
            assert is_blocked(qubes, stick) == (not rule), end
            assert qubes.backend.run("usbguard list-rules").text == before


PARTITION = (
    'import struct; entry = struct.pack("<B3xB3x2I", 0, 0x83, 2048, 8192);'
    " table = bytes(446) + entry + bytes(48) + bytes([0x55, 0xAA]);"
    ' open("/dev/sda", "r+b").write(table)'
)
IN_USE = {
    "mount": ("mkfs.ext2 -q -F /dev/sda; mount /dev/sda /mnt", "umount /mnt"),
    "elsewhere": (
        "mkfs.ext2 -q -F /dev/sda; touch /run/ns; unshare -m sh -c "
        "'mount /dev/sda /mnt; touch /run/mounted; sleep 1000' >/dev/null 2>&1 </dev/null & "
        "until test -e /run/mounted; do :; done",
        "pkill -f '[s]leep 1000'; rm /run/mounted",
    ),
    "partition": (
        f"python3 -c '{PARTITION}'; blockdev --rereadpt /dev/sda;"
        " until test -b /dev/sda1; do :; done;"
        " mkfs.ext2 -q -F /dev/sda1; mount /dev/sda1 /mnt",
        "umount /mnt",
    ),
    "swap": ("mkswap -q /dev/sda; swapon /dev/sda", "swapoff /dev/sda"),
    "loop device": ("modprobe loop; losetup /dev/loop0 /dev/sda", "losetup -d /dev/loop0"),
}


SEEN = {
    "mount": "sda is mounted at /mnt",
    "partition": "sda1 is mounted at /mnt",
    "swap": "sda is swap",
    "loop device": "sda is part of loop0",
}
"""What every user sees of that; nothing of another namespace."""


@pytest.mark.parametrize("how", IN_USE)
def test_a_disk_in_use_is_refused(qubes: Qubes, how: str) -> None:
    use, release = IN_USE[how]
    stick = qubes.plug_storage("stick", 8 << 20)
    qubes.backend.wait_for("test -b /dev/sda")
    qubes.backend.run(use)
    flag = "/run/qubes-service/usb-proxy-lend-in-use"
    try:
        done = qubes.attach(stick)
        assert f"USB device {stick} is in use in the qube that it is plugged into" in (
            done.stderr.decode()
        )
        assert b"sda" not in done.stderr and b"mnt" not in done.stderr
        assert qubes.driver(stick) == "usb"
        status = qubes.backend.run("qubes-usb-proxy status", user="nobody").text
        assert f"{stick} is in use in this qube: " in status or how not in SEEN
        assert SEEN.get(how, stick) in status
        reset = qubes.backend.run(f"/usr/lib/qubes/usb-reset {stick}", check=False)
        assert (reset.code, b"[UP-410]" in reset.stderr) == (4, True)
    finally:
        qubes.backend.run(release)
    assert qubes.attach(stick).code == 0
    disk(qubes, "stick")
    assert qubes.take_back(stick).code == 0
    qubes.backend.run(f"rm -f {flag}")


def test_a_disk_in_use_is_lent_where_that_is_wished(qubes: Qubes) -> None:
    stick = qubes.plug_storage("stick", 8 << 20)
    qubes.backend.wait_for("test -b /dev/sda")
    qubes.backend.run("mkswap -q /dev/sda; swapon /dev/sda")
    qubes.backend.write("/run/qubes-service/usb-proxy-lend-in-use", "")
    try:
        assert qubes.attach(stick).code == 0
        assert qubes.take_back(stick).code == 0
    finally:
        # Its kernel would keep the swap, and with that the disk's name, for ever.
        qubes.backend.restart()


def test_a_device_that_udev_forbids_is_not_lent(qubes: Qubes, stick: str) -> None:
    rule = 'SUBSYSTEM=="usb", ENV{QUBES_EXPORT_USB_DEVICE}="0"\n'
    with qubes.udev_rule(rule, stick, "QUBES_EXPORT_USB_DEVICE=0"):
        for name in (stick, "0x46f4.0x0001"):
            assert f"forbids lending USB device {stick};" in qubes.attach(name).stderr.decode()
        assert qubes.driver(stick) == "usb"


@pytest.mark.long
def test_no_other_device_wakes_an_attached_exporter(qubes: Qubes, stick: str) -> None:
    assert qubes.attach(stick).code == 0
    disk(qubes, "stick")
    pid = qubes.backend.run("pgrep -f '^/usr/bin/python3 .*launch usb-export '").text
    count = f"awk '/^(non)?voluntary/ {{n += $2}} END {{print n}}' /proc/{pid}/status"
    qubes.backend.wait_for(f"grep -q '^State:.S' /proc/{pid}/status")
    qubes.backend.run("udevadm settle; sleep 1")
    before = qubes.backend.run(count).text
    for number in range(20):
        qubes.backend.plug_keyboard(f"other{number}")
        qubes.backend.wait_for("grep -l . /sys/bus/usb/devices/*/product | xargs grep -q Keyboard")
        qubes.backend.unplug(f"other{number}")
        qubes.backend.wait_for("! cat /sys/bus/usb/devices/*/product | grep -q Keyboard")
    assert qubes.backend.run(count).text == before
    # Its own is heard of all the same, whoever else notices.
    qubes.backend.unplug("stick")
    assert qubes.await_clean() == []


def test_what_waited_does_not_begin_after_all_was_detached(qubes: Qubes, stick: str) -> None:
    """The exporter that waits for the lock gets it when the other one was ended."""
    assert qubes.attach(stick).code == 0
    disk(qubes, "stick")
    with qubes.lab.allowed("qubes.USB", "*", qubes.frontend, qubes.backend):
        # It waits for a second; on a busy machine that would be over too soon.
        waits = "test $(ls -l /proc/[0-9]*/fd 2>&- | grep -c 'export-.*lock') -gt 1"
        held = "pid=$(pgrep -n -f '[l]aunch usb-export'); kill -STOP $pid"
        ended = "/usr/lib/qubes/usb-detach-all; kill -CONT $pid"
        watcher = qubes.backend.start_command(f"until {waits}; do :; done; {held}; {ended}")
        call = qubes.lab.start_call(qubes.frontend, "qubes.USBAttach", b"sys-usb 0x46f4.0x0001\n")
        assert watcher.wait(60).code == 0
        done = call.wait(60)
    assert done.code != 0, done
    assert b"were detached during this attach; try again [UP-804]" in done.stderr, done
    assert qubes.driver(stick) == "usb"
    assert qubes.attach(stick).code == 0
    assert qubes.take_back(stick).code == 0


@pytest.mark.parametrize("where", ["backend", "frontend"])
def test_nothing_begins_between_suspend_and_resume(qubes: Qubes, stick: str, where: str) -> None:
    guest = getattr(qubes, where)
    guest.run(
        "QREXEC_SERVICE_FULL_NAME=qubes.SuspendPreAll"
        " sh -c 'for script in /etc/qubes/suspend-pre.d/*.sh; do $script || exit; done'"
    )
    try:
        done = qubes.attach(stick)
        assert done.code != 0 and b"the computer is about to suspend" in done.stderr, done
        assert qubes.driver(stick) == "usb"
    finally:
        guest.run("for script in /etc/qubes/suspend-post.d/*.sh; do $script || exit; done")
    assert qubes.attach(stick).code == 0
    assert qubes.take_back(stick).code == 0


@pytest.mark.parametrize(
    ("end", "why"), [*zip(ENDS, ("detached", "detached", "died", "died"), strict=True)]
)
def test_dom0_is_told_why_it_ended(qubes: Qubes, stick: str, end: str, why: str) -> None:
    assert qubes.attach(stick).code == 0
    disk(qubes, "stick")
    end_export(qubes, stick, end)
    key = f"/qubes-usb-devices/{stick}/x-ended"
    assert qubes.lab.qubesdb_list(qubes.backend, key) == {key: why.encode()}
    assert qubes.attach(stick).code == 0
    qubes.backend.unplug("stick")
    assert qubes.await_clean() == []
    qubes.backend.wait_for("! ls /run/lab-qubesdb/*2-1*")
