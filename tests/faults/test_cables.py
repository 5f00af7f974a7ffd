# SPDX-License-Identifier: GPL-2.0-or-later
"""Family 2: what happens to the cable, at every step of an attach and of a detach."""

import dataclasses
from collections.abc import Callable, Iterator

from tests.lab.qubes import RESET
from tests.lab.router import Completed

from . import steps
from .conftest import STICK, Faults
from .table import After, Case, each
from .test_death import BACKEND, FRONTEND, HANDED_OVER, LAST_WAIT, REPORTED

NOT_ATTACHED = r"^usb-attach: \S+ of sys-usb is not attached: "
OTHER = "other"
GONE = "! test -e /sys/bus/usb/devices/{}"
KEYBOARD = "0x0627.0x0001"
TABLET = "056a"
ATTACH, EXPORT = steps.ALL["usb-attach"], steps.ALL["usb-export"]
IMPORT = steps.changes(steps.ALL["usb-import"])


def during(faults: Faults, case: Case, device: str, act: Callable[[], object]) -> Completed:
    """Stop the case's program at its step, `act`, let it go on; gives the command's end."""
    with faults.standing(case, device) as (call, resume):
        act()
        resume()
        return call.wait(120)


def cases(name: str, parts: dict[tuple[str, str, str], tuple[str, ...]]) -> Iterator[Case]:
    """`name` at steps: by guest, program and journey."""
    for (guest, program, journey), its_steps in parts.items():
        for index, step in enumerate(its_steps):
            way = journey
            if journey == "detach":
                way = f"detach in {(BACKEND, FRONTEND)[index % 2]}"
            last = REPORTED if program == "usb-import" else HANDED_OVER
            at = its_steps.index(last) if last in its_steps else len(its_steps)
            yield Case(
                "cables",
                f"{name} ({way})",
                f"{program}: {step}",
                NOT_ATTACHED if journey == "attach" else "^usb-detach: ",
                may_succeed=journey != "attach" or index >= at,
                data={"guest": guest, "program": program, "journey": way, "step": step},
            )


# Unplugged at each step; for the exporter also between two looks.

UNPLUGGED = list(
    cases(
        "unplugged",
        {
            (BACKEND, "usb-export", "attach"): EXPORT,
            (FRONTEND, "usb-import", "attach"): IMPORT,
            (BACKEND, "usb-export", "detach"): steps.ALL["usb-export, its end"],
            (FRONTEND, "usb-import", "detach"): steps.changes(steps.ALL["usb-import, its end"]),
        },
    )
)
CASES = list(UNPLUGGED)


@each(UNPLUGGED)
def test_unplugged(faults: Faults, case: Case) -> None:
    device = faults.stick()

    def pull() -> None:
        faults.backend.unplug(STICK)
        faults.backend.wait_for(GONE.format(device))

    faults.check(case, during(faults, case, device, pull))


# The hub above is unplugged.

HUB = list(
    cases(
        "its hub is unplugged",
        {
            (BACKEND, "usb-export", "attach"): (
                "sysfs.UsbDevice.driver readlink",
                "usbip_host.take write match_busid",
                "sysfs.UsbDevice.write write unbind",
                "usbip_host.take write bind",
                "sysfs.UsbDevice.pin open",
                "sysfs.UsbDevice.write write usbip_sockfd",
                HANDED_OVER,
                steps.SLEEPS,
            ),
            (BACKEND, "usb-export", "detach"): (
                "qrexec.Link.end shutdown",
                "sysfs.UsbDevice.write write usbip_sockfd (2)",
                "sysfs.UsbDevice.write write unbind (2)",
                "usbip_host.give_back write rebind",
            ),
        },
    )
)
CASES += HUB


@each(HUB)
def test_its_hub_is_unplugged(faults: Faults, case: Case) -> None:
    faults.unplug_all()
    faults.backend.plug_hub("hub", port="3")
    device = faults.plug_storage(STICK, faults.image, port="3.2")
    assert device.endswith(".2")

    def pull() -> None:
        faults.backend.unplug("hub")
        faults.backend.wait_for(GONE.format(device))

    faults.check(case, during(faults, case, device, pull))


# Another device in the same port.

BOUND = EXPORT.index("usbip_host.take write bind")
LOOK_UP = "sysfs.UsbDevice.__init__ open"
OF_ALL = ("usage.Claim.__init__ listdir block", "usage.Claim.__init__ readlink")
BEFORE_BOUND = tuple(
    # A keyboard has no disks that could be claimed.
    step
    for step in EXPORT[: BOUND + 2]
    if step in OF_ALL or not step.startswith("usage.Claim.")
)
LOOKED_UP = BEFORE_BOUND.index(LOOK_UP)
SWAPPED = list(
    cases(
        "another kind of device in its port",
        {(BACKEND, "usb-export", "attach"): BEFORE_BOUND[LOOKED_UP:]},
    )
)
CASES += SWAPPED


@each(SWAPPED)
def test_another_kind_of_device_in_its_port(faults: Faults, case: Case) -> None:
    """Asked for by vendor and product: what comes in its place must not be attached."""
    faults.unplug_all()
    faults.backend.plug_keyboard("keyboard", port="1")
    device = faults.bus_id("product=QEMU USB Keyboard")

    def swap() -> None:
        faults.backend.unplug("keyboard")
        faults.backend.wait_for(GONE.format(device))
        faults.backend.plug("usb-wacom-tablet", "tablet", port="1")
        assert faults.bus_id(f"idVendor={TABLET}") == device

    done = during(faults, case, KEYBOARD, swap)
    assert done.code != 0
    assert faults.connected_to(device) is None
    assert faults.driver(device) == "usb"
    faults.unplug_all()
    faults.check(case, done)


# The same where it is not asked for by what it is, but dom0 told that: between dom0's call and the
# moment from which the exporter notices by itself, it is the importer that does.

EXCHANGED = [
    dataclasses.replace(case, short=case.data["step"] in (ATTACH[-2], LOOK_UP))
    for case in cases(
        "another kind of device than was announced",
        {
            (FRONTEND, "usb-attach", "attach"): ATTACH[1:],
            (BACKEND, "usb-export", "attach"): BEFORE_BOUND,
            (FRONTEND, "usb-import", "attach"): IMPORT[: IMPORT.index(REPORTED)],
        },
    )
]
CASES += EXCHANGED


@each(EXCHANGED)
def test_another_kind_of_device_than_was_announced(faults: Faults, case: Case) -> None:
    """What has the same vendor, product and interfaces cannot be told apart; a tablet can."""
    faults.unplug_all()
    faults.backend.plug_keyboard("keyboard", port="1")
    device = faults.bus_id("product=QEMU USB Keyboard")
    announced = faults.told(device)
    assert announced == "0627:0001 030101"
    with faults.witness() as seen:
        with faults.standing(case, device, announced=announced) as (call, resume):
            faults.backend.unplug("keyboard")
            faults.backend.wait_for(GONE.format(device))
            faults.backend.plug("usb-wacom-tablet", "tablet", port="1")
            assert faults.bus_id(f"idVendor={TABLET}") == device
            resume()
            done = call.wait(120)
        faults.check_settled(case)
    assert done.code != 0
    # From its permission on the keyboard may type, which is what was announced.
    was_judged = case.data["step"] in IMPORT[IMPORT.index(LAST_WAIT) + 1 :]
    typing = [line for line in seen if "(input)" in line or "(hid)" in line]
    assert not [line for line in typing if not was_judged or "/0003:0627:0001." not in line]
    assert (faults.driver(device), faults.connected_to(device)) == ("usb", None)
    faults.unplug_all()
    faults.check(case, done)


ATTACHED = "while attached"
SAME_PORT = Case("cables", "another device in its port", ATTACHED, short=True)
GADGET = Case("cables", "a device comes again with another identity", ATTACHED)
RESET_IN_BACKEND = Case("cables", "reset in the backend", ATTACHED, after=After.EITHER)
RESET_IN_FRONTEND = Case("cables", "reset in the frontend", ATTACHED, after=After.EITHER)
HUB_ATTACHED = Case("cables", "its hub is unplugged", ATTACHED)
UNNOTICED = Case("cables", "unplugged, and usbip-host does not end the connection", ATTACHED)
CASES += [SAME_PORT, GADGET, RESET_IN_BACKEND, RESET_IN_FRONTEND, HUB_ATTACHED, UNNOTICED]


@each([SAME_PORT])
def test_another_device_in_its_port(faults: Faults, case: Case) -> None:
    device = faults.stick()
    assert faults.attach(device).code == 0
    port = faults.backend.port(STICK)
    faults.backend.unplug(STICK)
    assert faults.plug_storage(OTHER, faults.image, port=port) == device
    faults.check_settled(case)
    assert (faults.driver(device), faults.connected_to(device)) == ("usb", None)
    faults.backend.unplug(OTHER)
    faults.check(case, None)


@each([HUB_ATTACHED])
def test_its_hub_is_unplugged_while_attached(faults: Faults, case: Case) -> None:
    faults.unplug_all()
    faults.backend.plug_hub("hub", port="3")
    device = faults.plug_storage(STICK, faults.image, port="3.2")
    assert faults.attach(device).code == 0
    faults.check_attached(device)
    faults.backend.unplug("hub")
    faults.check(case, None)


RETURN_1 = bytes.fromhex("b801000000 c3")
"""In x86-64: mov eax, 1; ret."""


@each([UNNOTICED])
def test_unplugged_and_not_noticed(faults: Faults, case: Case) -> None:
    """usbip-host takes the thread that unbinds the device for its own, and leaves all to that.

    It remembers its first thread for ever, by an address that another one gets when that has ended
    (usbip_event.c, usbip_in_eh).
    """
    faults.unplug_all()
    faults.backend.plug_serial("serial")
    device = faults.bus_id("product=QEMU USB SERIAL")
    assert faults.attach(device).code == 0
    # From now on nobody asks it for anything: that alone would end the connection.
    faults.frontend.wait_for("test -c /dev/ttyUSB0 && udevadm settle")
    with faults.backend.broken_kernel("usbip_in_eh", RETURN_1):
        faults.backend.unplug("serial")
        faults.check_settled(case)
    faults.check(case, None)


GADGET_SCRIPT = """set -e
modprobe dummy_hcd; modprobe usb_f_acm
mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config
mkdir -p /sys/kernel/config/usb_gadget/lab; cd /sys/kernel/config/usb_gadget/lab
echo 0x1d6b > idVendor; echo 0x0104 > idProduct
mkdir -p functions/acm.usb0 configs/c.1; ln -s functions/acm.usb0 configs/c.1
echo dummy_udc.0 > UDC
"""
GADGET_CHANGE = """cd /sys/kernel/config/usb_gadget/lab
echo '' > UDC; echo 0x0105 > idProduct; echo dummy_udc.0 > UDC
"""
GADGET_END = """cd /sys/kernel/config/usb_gadget/lab
echo '' > UDC; rm configs/c.1/acm.usb0; rmdir configs/c.1 functions/acm.usb0; cd ..; rmdir lab
umount /sys/kernel/config; modprobe -r dummy_hcd usb_f_acm
"""


@each([GADGET])
def test_a_device_comes_again_with_another_identity(faults: Faults, case: Case) -> None:
    """As one does that is reprogrammed, or switches its mode."""
    faults.backend.run(GADGET_SCRIPT)
    try:
        device = faults.bus_id("idProduct=0104")
        assert faults.attach(device).code == 0
        faults.frontend.wait_for("test -c /dev/ttyACM0")
        faults.backend.run(GADGET_CHANGE)
        faults.check_settled(case)
        assert faults.bus_id("idProduct=0105") == device
        assert (faults.driver(device), faults.connected_to(device)) == ("usb", None)
        assert faults.attach(device).code == 0
        faults.frontend.wait_for("test -c /dev/ttyACM0")
        assert faults.frontend.run("cat /sys/bus/usb/devices/*-*/idProduct").text == "0105"
        assert faults.detach(device).code == 0
        assert faults.await_clean() == []
    finally:
        faults.backend.run(GADGET_END)
    faults.check(case, None)


@each([RESET_IN_BACKEND, RESET_IN_FRONTEND])
def test_reset(faults: Faults, case: Case) -> None:
    """By a program of root's; either the device stays attached and readable, or it is let go."""
    device = faults.stick()
    assert faults.attach(device).code == 0
    faults.check_attached(device)
    guest, path = faults.backend, f"/sys/bus/usb/devices/{device}"
    if case is RESET_IN_FRONTEND:
        guest = faults.frontend
        path = faults.place()
    code = guest.run(f'python3 -c "{RESET.format(path)}"', check=False).code
    print(f"reset in {guest.name}: exit code {code}")
    faults.check(case, None)


SLOT = Case(
    "cables",
    "unplugged after the exporter and its guardian were killed",
    ATTACHED,
    after=After.NEXT_COMMAND,
    left_in=BACKEND,
    short=True,
)
CASES += [SLOT]


@each([SLOT])
def test_unplugged_after_the_exporter_and_its_guardian(faults: Faults, case: Case) -> None:
    """usbip-host keeps the slot of the port's name until the port is used again."""
    device = faults.stick()
    assert faults.attach(device).code == 0
    faults.backend.run("pkill -KILL -f '[u]sb-export'")
    faults.backend.unplug(STICK)
    faults.backend.wait_for(GONE.format(device))
    done = faults.take_back(device)
    assert (done.code, done.stderr) == (0, b"")
    assert faults.await_clean() == []
    assert device in faults.backend.read("/sys/bus/usb/drivers/usbip-host/match_busid").decode()
    faults.check(case, None)  # ... which frees it.


def test_a_full_table_is_told_of(faults: Faults) -> None:
    """What a user reads after sixteen such accidents at different ports."""
    device = faults.stick()
    table = "/sys/bus/usb/drivers/usbip-host/match_busid"
    faults.backend.run(f"for n in $(seq 16); do printf 'add 9-%s' $n > {table}; done")
    done = faults.attach(device)
    assert done.code != 0
    assert b"usbip-host already has 16 devices, its limit" in done.stderr
    assert b"or restart this qube if nothing is attached" in done.stderr
    faults.backend.run("modprobe -r usbip-host")
    faults.attach_and_detach(device)
