# SPDX-License-Identifier: GPL-2.0-or-later
"""Each kind of device of the lab works when dom0 has told what it is, and goes on working."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.qubes import RESET, Qubes

from .test_arrival import nothing_is_left
from .test_attach import disk
from .test_cost import resident, switches

__all__ = ["nothing_is_left"]


@dataclass(frozen=True)
class Kind:
    """How to plug one in, how to know it in sys-usb, and what drives it in work."""

    plug: Callable[[Qubes, Path], object]
    attribute: str
    drivers: frozenset[str]
    """None where programs drive it, through usbfs."""
    modules: tuple[str, ...] = ()


def kind(
    plug: Callable[[Qubes, Path], object], attribute: str, drivers: str = "", modules: str = ""
) -> Kind:
    return Kind(plug, attribute, frozenset(drivers.split()), tuple(modules.split()))


def plug_network(qubes: Qubes) -> None:
    """Two drivers match it, and that which is loaded first gets it, whoever has plugged it in."""
    qubes.frontend.run("modprobe -a cdc_ether rndis_host cdc_subset")
    qubes.backend.plug("usb-net", "net")


KINDS = {
    "storage": kind(
        lambda q, _: q.backend.plug_storage("kind", 1 << 20),
        "serial=kind",
        "usb-storage",
        "uas usb_storage",
    ),
    "keyboard": kind(
        lambda q, _: q.backend.plug_keyboard("kind"),
        "product=QEMU USB Keyboard",
        "usbhid",
        "usbhid",
    ),
    "sound card": kind(
        lambda q, folder: q.backend.plug_audio("kind", folder / "heard.wav"),
        "product=QEMU USB Audio",
        "snd-usb-audio",
        "snd_usb_audio",
    ),
    "serial": kind(
        lambda q, _: q.backend.plug_serial("kind"),
        "product=QEMU USB SERIAL",
        "ftdi_sio",
        "ftdi_sio",
    ),
    "network": kind(
        lambda q, _: plug_network(q),
        "product=RNDIS/QEMU USB Network Device",
        "cdc_ether",
    ),
    "card reader": kind(lambda q, _: q.backend.plug("usb-ccid", "kind"), "product=QEMU USB CCID"),
    "media player": kind(
        lambda q, folder: q.backend.plug("usb-mtp", "kind", rootdir=str(folder)),
        "idProduct=0004",
    ),
}

CLAIM = (
    "import fcntl, os; d = '{}/'; b, n = (int(open(d + f).read()) for f in ('busnum', 'devnum'));"
    " fcntl.ioctl(os.open(f'/dev/bus/usb/{{b:03d}}/{{n:03d}}', os.O_RDWR), 0x8004550f, bytes(4))"
)
"""USBDEVFS_CLAIMINTERFACE: the kernel refuses it for an interface that is not authorized."""


def check_driven(qubes: Qubes, drivers: frozenset[str]) -> None:
    """All interfaces of the device in work are authorized, and these drivers have them."""
    work, place = qubes.frontend, qubes.place()
    find = f"for i in {place}/*:*/driver; do readlink $i; done | sed 's|.*/||' | sort -u | xargs"
    wanted = " ".join(sorted(drivers))
    work.wait_for(f'[ "$({find})" = "{wanted}" ]')
    assert work.run(f"cat {place}/*:*/authorized | sort -u").text == "1"
    if not drivers:
        work.run(f'python3 -c "{CLAIM.format(place)}"')


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_with_its_driver_loaded_late_and_before(
    qubes: Qubes, tmp_path: Path, name: str
) -> None:
    each = KINDS[name]
    each.plug(qubes, tmp_path)
    device = qubes.bus_id(each.attribute)
    assert qubes.told(device)[10:] not in ("", "*")
    for module in each.modules:
        qubes.frontend.run(f"modprobe -r {module}; ! grep -w ^{module} /proc/modules")
    for _ in ("late", "before"):
        done = qubes.attach(device)
        assert (done.code, done.stderr) == (0, b"")
        check_driven(qubes, each.drivers)
        assert qubes.detach(device).code == 0
        for module in each.modules[-1:]:
            qubes.frontend.run(f"grep -w ^{module} /proc/modules")


FOUR = """set -e
modprobe dummy_hcd; for f in acm ecm hid mass_storage; do modprobe usb_f_$f; done
mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config
mkdir -p /sys/kernel/config/usb_gadget/four; cd /sys/kernel/config/usb_gadget/four
echo 0x1d6b > idVendor; echo 0x0104 > idProduct; mkdir configs/c.1
for f in acm.1 ecm.2 hid.3 mass_storage.4; do mkdir functions/$f; done
echo 8 > functions/hid.3/report_length
printf '\\006\\000\\377\\011\\001\\241\\001\\025\\000\\045\\177\\165\\010\\225\\010' > /run/four
printf '\\201\\002\\300' >> /run/four; cat /run/four > functions/hid.3/report_desc
truncate -s 0 /run/four; truncate -s 1M /run/four
echo /run/four > functions/mass_storage.4/lun.0/file
for f in acm.1 ecm.2 hid.3 mass_storage.4; do ln -s functions/$f configs/c.1; done
echo dummy_udc.0 > UDC
"""
FOUR_END = """cd /sys/kernel/config/usb_gadget/four
echo '' > UDC; rm configs/c.1/*.?; rmdir configs/c.1 functions/*; cd ..; rmdir four
umount /sys/kernel/config; modprobe -r dummy_hcd; rm /run/four
"""


def test_one_with_four_functions(qubes: Qubes) -> None:
    qubes.backend.run(FOUR)
    try:
        device = qubes.bus_id("idProduct=0104", 'driver && test -e "$d":1.5/driver')
        assert len(qubes.told(device).split()) > 5
        for _ in range(2):
            done = qubes.attach(device)
            assert (done.code, done.stderr) == (0, b"")
            check_driven(qubes, frozenset(("cdc_acm", "cdc_ether", "usbhid", "usb-storage")))
            qubes.frontend.wait_for("test -c /dev/ttyACM0 && test -b /dev/sda")
            assert qubes.take_back(device).code == 0
    finally:
        qubes.backend.run(FOUR_END)


@pytest.mark.long
def test_ten_at_once(qubes: Qubes) -> None:
    names = [f"stick{number}" for number in range(10)]
    found = [
        qubes.plug_storage(name, 256 << 10, bus=("xhci.0", "ehci.0")[number % 2])
        for number, name in enumerate(names)
    ]
    for device in found:
        qubes.lab.allow("qubes.USB", device, qubes.frontend, qubes.backend)
    try:
        calls = [qubes.start_attach(device) for device in found]
        ends = [call.wait(300) for call in calls]
    finally:
        for device in found:
            qubes.lab.revoke("qubes.USB", device, qubes.frontend, qubes.backend)
    assert {(done.code, done.stderr) for done in ends} == {(0, b"")}
    for name in names:
        disk(qubes, name)
    for device in found:
        assert qubes.detach(device).code == 0


def test_another_configuration(qubes: Qubes) -> None:
    """Its interfaces were announced, too: a program may switch to it, and back."""
    plug_network(qubes)
    device = qubes.bus_id("product=RNDIS/QEMU USB Network Device")
    assert qubes.attach(device).code == 0
    place = qubes.place()
    assert qubes.frontend.run(f"cat {place}/bNumConfigurations").text == "2"
    first = qubes.frontend.run(f"cat {place}/bConfigurationValue").text
    for value in ({"1": "2", "2": "1"}[first], first):
        qubes.frontend.run(f"echo {value} > {place}/bConfigurationValue")
        qubes.frontend.wait_for(f"test -e {place}/*:{value}.0/net")
        assert qubes.frontend.run(f"cat {place}/*:*/authorized | sort -u").text == "1"
    assert qubes.detach(device).code == 0


def test_another_setting_wakes_nobody(qubes: Qubes, tmp_path: Path) -> None:
    """A sound card has one with and one without its stream."""
    qubes.backend.plug_audio("audio", tmp_path / "heard.wav")
    audio = qubes.bus_id("product=QEMU USB Audio")
    assert qubes.attach(audio).code == 0
    qubes.frontend.wait_for("grep -q QEMU /proc/asound/cards")
    qubes.frontend.run("udevadm settle")
    pid = resident(qubes.frontend)
    before = switches(qubes.frontend, pid)
    for _ in range(2):
        qubes.frontend.run(
            "aplay -q -D hw:0,0 -t raw -f S16_LE -c 2 -r 48000 -", stdin=bytes(48000), timeout=120
        )
    assert switches(qubes.frontend, pid) == before
    assert qubes.detach(audio).code == 0


def test_a_reset_wakes_nobody(qubes: Qubes, stick: str) -> None:
    assert qubes.attach(stick).code == 0
    disk(qubes, "stick")
    qubes.frontend.run("udevadm settle")
    pid = resident(qubes.frontend)
    before = switches(qubes.frontend, pid)
    qubes.frontend.run(f'python3 -c "{RESET.format(qubes.place())}"')
    qubes.frontend.run("udevadm settle; dd if=/dev/sda of=/dev/null iflag=direct bs=64k")
    assert switches(qubes.frontend, pid) == before
    assert qubes.detach(stick).code == 0
