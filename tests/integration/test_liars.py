# SPDX-License-Identifier: GPL-2.0-or-later
"""A backend that publishes a stick, and speaks USB/IP for something else.

No driver of work gets what was not announced, at no moment: all that its kernel told meanwhile is
the witness.
"""

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.qubes import RESET, Qubes

from .test_arrival import nothing_is_left

__all__ = ["nothing_is_left"]

BUS_ID = "9-1"
SERVICE = f"/usr/local/etc/qubes-rpc/qubes.USB+{BUS_ID}"
KEY = f"/qubes-usb-devices/{BUS_ID}"
STICK, KEYBOARD, HUB, PRINTER = "080650", "030101", "090000", "070102"
ANNOUNCED = f"46f4:0001 {STICK}"

# Descriptors, USB 2.0, 9.6.


def endpoint(address: int, kind: int, size: int) -> bytes:
    return struct.pack("<BBBBHB", 7, 5, address, kind, size, 4)


BULK, INTERRUPT = 2, 3
REST = {
    STICK: endpoint(0x81, BULK, 512) + endpoint(0x02, BULK, 512),
    KEYBOARD: struct.pack("<BBHBBBH", 9, 0x21, 0x111, 0, 1, 0x22, 63)
    + endpoint(0x83, INTERRUPT, 8),
    HUB: endpoint(0x84, INTERRUPT, 1),
}


def interface(number: int, kind: str, setting: int = 0) -> bytes:
    rest = REST[kind]
    head = bytes([9, 4, number, setting, rest.count(b"\x07\x05")])
    return head + bytes.fromhex(kind) + b"\0" + rest


def printer(number: int) -> bytes:
    pipes = endpoint(0x81 + number, BULK, 512) + endpoint(0x01 + number, BULK, 512)
    return bytes([9, 4, number, 0, 2]) + bytes.fromhex(PRINTER) + b"\0" + pipes


def configuration(*parts: bytes, value: int = 1, power: int = 50) -> bytes:
    rest = b"".join(parts)
    numbers = {part[2] for part in parts if part[1] == 4}
    return struct.pack("<BBHBBBBB", 9, 2, 9 + len(rest), len(numbers), value, 0, 0x80, power) + rest


def device(
    ids: str = "46f4:0001", kind: int = 0, count: int = 1, length: int = 18, named: bool = False
) -> bytes:
    vendor, product = (int(number, 16) for number in ids.split(":"))
    head = (length, 1, 0x200, kind, 0, 0, 64)
    names = (1, 2, 3) if named else (0, 0, 0)
    return struct.pack("<BBHBBBBHHHBBBB", *head, vendor, product, 1, *names, count)


def string(text: bytes) -> str:
    """A string descriptor of UTF-16, or of what is none."""
    return (bytes([2 + len(text), 3]) + text).hex()


Twice = bytes | tuple[bytes, bytes]
"""A descriptor, or what is told of it at the first and at the second reading."""


def reading(itself: Twice, *configurations: Twice, **more: object) -> dict[str, object]:
    def told(what: Twice) -> list[str]:
        return [each.hex() for each in (what if isinstance(what, tuple) else (what, what))]

    return {"device": told(itself), "configurations": list(map(told, configurations)), **more}


HONEST = configuration(interface(0, STICK))
KEYS = configuration(interface(0, KEYBOARD))
BOTH = configuration(interface(0, STICK), interface(1, KEYBOARD))

ANOTHER, NONE_OF_THEM = "UP-640", "UP-641"
LIES = {
    "a keyboard": (NONE_OF_THEM, reading(device(), KEYS)),
    "a hub": (ANOTHER, reading(device(kind=9), configuration(interface(0, HUB)))),
    "a hub by its interface": (
        ANOTHER,
        reading(device(), configuration(interface(0, STICK), interface(1, HUB))),
    ),
    "another vendor": (ANOTHER, reading(device("046d:0001"), HONEST)),
    "another product": (ANOTHER, reading(device("46f4:0002"), BOTH)),
    "a hub at the second reading": (ANOTHER, reading((device(), device(kind=9)), HONEST)),
    "another vendor at the second reading": (
        ANOTHER,
        reading((device(), device("046d:c31c")), KEYS),
    ),
    "a keyboard at the second reading": (NONE_OF_THEM, reading(device(), (HONEST, KEYS))),
    "a stick that can be set to a keyboard": (
        NONE_OF_THEM,
        reading(device(), configuration(interface(0, STICK), interface(0, KEYBOARD, 1))),
    ),
    "a keyboard that can be set to a stick": (
        NONE_OF_THEM,
        reading(device(), configuration(interface(0, KEYBOARD), interface(0, STICK, 1))),
    ),
    "a keyboard behind a configuration that is none": (
        NONE_OF_THEM,
        reading(
            device(),
            configuration(
                configuration(value=9),
                interface(0, KEYBOARD),
                configuration(),
                interface(0, STICK, 1),
            ),
        ),
    ),
    "a keyboard beyond the first page": (
        NONE_OF_THEM,
        reading(
            device(),
            configuration(interface(0, STICK, 1), b"\x02\x24" * 10000, interface(0, KEYBOARD)),
        ),
    ),
    "a keyboard before where its own length leads": (
        NONE_OF_THEM,
        reading(
            device(length=18 + 9 + len(interface(0, KEYBOARD)) + 2),
            configuration(
                interface(0, KEYBOARD),
                bytes([2 + 9 + len(interface(0, STICK)), 0x24]) + HONEST,
            ),
        ),
    ),
    "a keyboard with the number of the stick": (
        NONE_OF_THEM,
        reading(device(), configuration(interface(0, STICK), interface(0, KEYBOARD))),
    ),
    "a keyboard that calls itself a device of that class": (
        NONE_OF_THEM,
        reading(device(kind=8), KEYS),
    ),
    "a hub that can be set to a stick": (
        ANOTHER,
        reading(device(), configuration(interface(0, STICK), interface(0, HUB, 1))),
    ),
    "a keyboard where the first configuration needs too much power": (
        NONE_OF_THEM,
        reading(
            device(count=2),
            configuration(interface(0, STICK), power=255),
            configuration(interface(0, KEYBOARD), value=2),
        ),
    ),
}


class Liar:
    """sys-usb with a service for a device that is not there."""

    def __init__(self, qubes: Qubes) -> None:
        self.qubes = qubes

    def says(self, *readings: dict[str, object]) -> None:
        """From now on it is this."""
        self.qubes.backend.write("/run/liar", json.dumps(readings))


@pytest.fixture
def liar(qubes: Qubes) -> Iterator[Liar]:
    """It has published a stick."""
    backend = qubes.backend
    backend.push(Path(__file__).parent / "liar.py", "/run/liar.py")
    backend.write(SERVICE, "#!/bin/sh\nexec /run/liar.py\n", 0o755)
    backend.run(f"qubesdb-write {KEY}/desc '46f4:0001 QEMU Stick 1' {KEY}/interfaces :{STICK}:")
    assert qubes.told(BUS_ID) == ANNOUNCED
    yield Liar(qubes)
    backend.run(f"qubesdb-rm {KEY}/; rm {SERVICE} /run/liar")


def unannounced(seen: list[str]) -> list[str]:
    """Whatever of these events is not of the device itself, or of the interface of its stick."""
    bad = []
    for line in seen:
        action, path, kind = line.split()
        its = path.partition("/vhci_hcd.")[2].split("/")[2:]
        foreign = kind in ("(input)", "(hid)", "(hidraw)", "(usbmisc)")
        behind = kind == "(usb)" and len([each for each in its if ":" not in each]) > 1
        bound = action == "bind" and its[1:] and not re.fullmatch(r"\d+-1:1\.0", its[1])
        if foreign or behind or bound:
            bad.append(line)
    return bad


@pytest.mark.parametrize("lie", LIES)
def test_it_is_taken_out_again_and_no_driver_has_met_it(qubes: Qubes, liar: Liar, lie: str) -> None:
    id, what = LIES[lie]
    liar.says(what)
    with qubes.witness() as seen:
        done = qubes.attach(BUS_ID)
        assert (done.code, done.stderr.count(b"\n")) == (6, 1)
        assert f"dom0 announced {ANNOUNCED}".encode() in done.stderr
        assert f"[{id}]".encode() in done.stderr
        assert qubes.await_clean() == []
    assert [line for line in seen if line.startswith("bind") and "/vhci_hcd." in line]
    assert [line for line in seen if line.startswith("bind") and ":" in line] == []
    assert unannounced(seen) == []


def test_the_witness_sees_a_keyboard_that_may_type(qubes: Qubes, liar: Liar) -> None:
    """The liar's keyboard works, and would have been seen."""
    liar.says(reading(device(), KEYS))
    with qubes.witness() as seen:
        assert qubes.attach(BUS_ID, f"46f4:0001 {KEYBOARD}").code == 0
        qubes.frontend.wait_for("ls /dev/input/event*")
        assert qubes.detach(BUS_ID).code == 0
    found = unannounced(seen)
    assert [line for line in found if "(input)" in line]
    assert [line for line in found if "(hid)" in line]


def test_a_keyboard_beside_the_stick_gets_no_driver(qubes: Qubes, liar: Liar) -> None:
    liar.says(reading(device(), BOTH))
    with qubes.witness() as seen:
        done = qubes.attach(BUS_ID)
        assert done.code == 0
        assert re.search(rb"interface 1\.1 \(030101\) was not .* \[UP-642\]\n$", done.stderr)
        drivers = qubes.frontend.run(f"cd {qubes.place()}; readlink *:1.*/driver").text
        assert drivers.splitlines() == ["../../../../../../bus/usb/drivers/usb-storage"]
        assert qubes.detach(BUS_ID).code == 0
    assert [line for line in seen if line.startswith("bind") and ":1.0 " in line]
    assert unannounced(seen) == []


def test_a_keyboard_that_is_there_in_another_setting_alone(qubes: Qubes, liar: Liar) -> None:
    """The kernel takes the setting that there is for the interface's first."""
    liar.says(reading(device(), configuration(interface(0, STICK), interface(1, KEYBOARD, 1))))
    with qubes.witness() as seen:
        done = qubes.attach(BUS_ID)
        assert (done.code, b"interface 1.1 (030101) was not" in done.stderr) == (0, True)
        assert qubes.detach(BUS_ID).code == 0
    assert unannounced(seen) == []


def test_a_keyboard_in_the_configuration_that_a_program_chooses(qubes: Qubes, liar: Liar) -> None:
    liar.says(reading(device(count=2), HONEST, configuration(interface(0, KEYBOARD), value=2)))
    with qubes.witness() as seen:
        assert qubes.attach(BUS_ID).code == 0
        qubes.frontend.run(f"echo 2 > {qubes.place()}/bConfigurationValue", check=False)
        qubes.frontend.wait_for("! pgrep -f '[l]aunch usb-import'")
        assert qubes.await_clean() == []
    assert unannounced(seen) == []


def test_a_keyboard_beside_the_stick_in_the_configuration_that_a_program_chooses(
    qubes: Qubes, liar: Liar
) -> None:
    both = configuration(interface(0, STICK), interface(1, KEYBOARD), value=2)
    liar.says(reading(device(count=2), HONEST, both))
    with qubes.witness() as seen:
        done = qubes.attach(BUS_ID)
        assert (done.code, done.stderr) == (0, b"")
        place = qubes.place()
        qubes.frontend.run(f"echo 2 > {place}/bConfigurationValue")
        qubes.frontend.wait_for(f"test -e {place}/*:2.0/driver")
        assert qubes.frontend.run(f"cat {place}/*:2.1/authorized").text == "0"
        status = qubes.frontend.run("qubes-usb-proxy status").text
        assert re.search(r"Interface \S+:2\.1 \(030101\) was not announced", status)
        assert qubes.detach(BUS_ID).code == 0
    assert [line for line in unannounced(seen) if ":2.0 " not in line] == []


ODD_NAMES = {
    "escapes": string("\x1b[2J\x07evil\r\n\0".encode("utf-16-le")),
    "no UTF-16": string(b"\x00\xd8\x00\xd8\x41"),
    "marks of direction": string("\u202egnp.exe\U0001f4a9".encode("utf-16-le")),
    "a variable of udev": string("x\nID_INPUT_KEYBOARD=1\n".encode("utf-16-le")),
    "longer than it is": bytes([255, 3]).hex() + "41" * 4,
    "no string at all": "0202",
}


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names(qubes: Qubes, liar: Liar, name: str) -> None:
    odd = ODD_NAMES[name]
    liar.says(reading(device(named=True), HONEST, strings=["04030904", odd, odd, odd]))
    with qubes.witness() as seen:
        done = qubes.attach(BUS_ID)
        assert (done.code, done.stderr) == (0, b"")
        for options in ("", " --json"):
            shown = qubes.frontend.run(f"qubes-usb-proxy status{options}").stdout.decode("ascii")
            assert shown.replace("\n", "").isprintable()
        assert qubes.detach(BUS_ID).code == 0
    assert unannounced(seen) == []


@pytest.mark.parametrize(
    ("what", "id"),
    [
        (reading(device(), configuration(interface(0, HUB))), "UP-640"),
        (reading(device("046d:c31c"), HONEST), "UP-640"),
        (reading(device(count=0)), ""),
    ],
    ids=["a hub", "another vendor's", "without a configuration"],
)
def test_a_stick_that_is_another_device_after_its_reset(
    qubes: Qubes, liar: Liar, what: dict[str, object], id: str
) -> None:
    liar.says(reading(device(), HONEST), what)
    with qubes.witness() as seen:
        assert qubes.attach(BUS_ID).code == 0
        qubes.frontend.run(f'python3 -c "{RESET.format(qubes.place())}"', check=False)
        if id:
            qubes.frontend.wait_for("! pgrep -f '[l]aunch usb-import'")
        else:  # It is no use, and does no harm, until somebody detaches it.
            assert qubes.detach(BUS_ID).code == 0
        assert qubes.await_clean() == []
    assert unannounced(seen) == []


def test_a_stick_that_is_a_keyboard_after_its_reset(qubes: Qubes, liar: Liar) -> None:
    liar.says(reading(device(), HONEST), reading(device(), KEYS))
    with qubes.witness() as seen:
        assert qubes.attach(BUS_ID).code == 0
        qubes.frontend.run(f'python3 -c "{RESET.format(qubes.place())}"', check=False)
        qubes.frontend.wait_for("! pgrep -f '[l]aunch usb-import'")
        assert qubes.await_clean() == []
    assert [line for line in seen if line.startswith("remove") and line.endswith("(usb)")]
    assert unannounced(seen) == []


def test_a_stick_whose_driver_resets_it_and_meets_a_keyboard(qubes: Qubes, liar: Liar) -> None:
    """Nobody in work has done anything: the other side chooses the moment."""
    liar.says(reading(device(), HONEST, stalls=True), reading(device(), KEYS))
    with qubes.witness() as seen:
        assert qubes.attach(BUS_ID).code == 0
        qubes.frontend.wait_for("! pgrep -f '[l]aunch usb-import'", 60)
        assert qubes.await_clean() == []
    assert unannounced(seen) == []


def test_a_keyboard_that_joins_the_stick_at_its_reset(qubes: Qubes, liar: Liar) -> None:
    """What was announced works on; the rest has no driver."""
    liar.says(reading(device(), HONEST), reading(device(), BOTH))
    with qubes.witness() as seen:
        assert qubes.attach(BUS_ID).code == 0
        place = qubes.place()
        qubes.frontend.run(f'python3 -c "{RESET.format(place)}"', check=False)
        qubes.frontend.wait_for(f"test -e {place}/*:1.1 && test -e {place}/*:1.0/driver")
        assert qubes.frontend.run(f"cat {place}/*:1.1/authorized").text == "0"
        assert qubes.detach(BUS_ID).code == 0
    assert unannounced(seen) == []


@pytest.mark.parametrize("announced", [f"46f4:0001 {PRINTER}", ""])
def test_drivers_that_wait_for_answers_get_their_time(
    qubes: Qubes, liar: Liar, announced: str
) -> None:
    """Each interface's asks for a name, for 5 s (drivers/usb/class/usblp.c, usblp_ctrl_msg)."""
    liar.says(reading(device(), configuration(*map(printer, range(4))), is_mute=True))
    qubes.frontend.run("modprobe usblp")  # Where udev has to, nobody can know that it will.
    clock = "cut -d . -f 1 /proc/uptime"
    started = int(qubes.frontend.run(clock).text)
    done = qubes.attach(BUS_ID, announced)
    assert (done.code, done.stderr) == (0, b"")
    assert int(qubes.frontend.run(clock).text) >= started + 20
    # They can be used from the moment on that success is told.
    qubes.frontend.run("test -c /dev/usb/lp0 && test -c /dev/usb/lp3")
    assert qubes.detach(BUS_ID).code == 0
