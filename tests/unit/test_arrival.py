# SPDX-License-Identifier: GPL-2.0-or-later
"""What may have a driver, and what is left of the judgement afterwards."""

from __future__ import annotations

import errno
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usb_proxy import journal, locks, repair
from usb_proxy.commands import usb_import
from usb_proxy.errors import PeerError, RequestError, SystemLackError
from usb_proxy.frontend import arrival, claims, descriptors, gates, vhci
from usb_proxy.idents import Announcement, Attachment
from usb_proxy.kernel import PROBE
from usb_proxy.qrexec import Link
from usb_proxy.uevents import Uevents

from .fake_kernel import FakeKernel
from .processes import hold

DEVICE = bytes.fromhex("12010003000000 09f4460100 0001 010203 01".replace(" ", ""))
STICK, KEYBOARD = "080650", "030101"


def interface(number: int, kind: str, setting: int = 0) -> bytes:
    return bytes([9, 4, number, setting, 0]) + bytes.fromhex(kind) + b"\0"


def configuration(value: int, *interfaces: bytes) -> bytes:
    return bytes([9, 2, 0, 0, len(interfaces), value, 0, 0x80, 50]) + b"".join(interfaces)


@pytest.mark.parametrize(
    ("text", "product", "covered", "foreign"),
    [
        ("46f4:0001 080650", "46f4:0001", {STICK}, {KEYBOARD}),
        ("46f4:0001 080650 030101", "46f4:0001", {STICK, KEYBOARD}, {"090000"}),
        ("46f4:0001 *", "46f4:0001", {STICK, KEYBOARD}, None),
    ],
)
def test_an_announcement(
    text: str, product: str, covered: set[str], foreign: set[str] | None
) -> None:
    announced = Announcement(text)
    assert announced.product == product
    assert announced.covers(covered)
    if foreign:
        assert not announced.covers(foreign)
        assert not announced.covers(covered | foreign)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "46f4", "46f4:0001", "46f4:0001 ", "46f4:0001  080650", "46F4:0001 080650"),
        *("46f4:0001 08065", "46f4:0001 0806500", "46f4:0001 08065g", "46f4:0001 * 080650"),
        *("46f4-0001 080650", "46f4:0001 080650\t", "../x 1", "46f4:0001" + " 080650" * 33),
    ],
)
def test_no_announcement(text: str) -> None:
    with pytest.raises(RequestError, match=r"\[UP-229\]"):
        Announcement(text)


@given(st.text(max_size=60))
def test_any_text_is_an_announcement_or_an_error(text: str) -> None:
    try:
        assert Announcement(text) == text
    except RequestError as error:
        assert str(error).isascii()


def test_interfaces_of_each_configuration_in_all_their_settings() -> None:
    shown = (
        with_configurations(2)
        + configuration(1, interface(0, STICK), interface(0, "080662", 1), interface(1, KEYBOARD))
        + configuration(2, interface(0, "020201"))
    )
    assert descriptors.interfaces(shown, 1) == {0: {STICK, "080662"}, 1: {KEYBOARD}}
    assert descriptors.interfaces(shown, 2) == {0: {"020201"}}
    assert descriptors.interfaces(shown, 3) == {}


HIDDEN = configuration(1, configuration(9, interface(0, KEYBOARD)), configuration(1))
"""A keyboard behind a header of a configuration that is none, and the first one once more."""


def test_a_header_within_a_configuration_hides_nothing() -> None:
    shown = DEVICE + HIDDEN + interface(0, STICK, 1)
    assert descriptors.interfaces(shown, 1) == {0: {STICK, KEYBOARD}}


def test_the_length_that_the_device_says_of_its_own_descriptor_is_nothing() -> None:
    """The kernel takes 18 bytes. Here it would lead to what is within a descriptor of a class."""
    shown = bytes([DEVICE[0] + 9 + 9 + 2]) + DEVICE[1:]
    shown += configuration(1, interface(0, KEYBOARD), bytes([20, 0x24]))
    shown += configuration(1, interface(0, STICK, 1))
    assert descriptors.interfaces(shown, 1) == {0: {KEYBOARD}}


@pytest.mark.parametrize(
    "shown",
    [
        *(b"", DEVICE[:17], DEVICE + configuration(1, interface(0, STICK)[:8])),
        *(DEVICE + configuration(1, b"\0\0"), DEVICE + configuration(1, b"\x01")),
        DEVICE + configuration(1) + b"\x02\x24" * ((descriptors.LIMIT - 18 - 9) // 2),
    ],
)
def test_what_the_kernel_never_shows_or_not_whole(shown: bytes) -> None:
    with pytest.raises(ValueError):
        descriptors.interfaces(shown, 1)


@given(st.binary(max_size=200), st.integers(0, 255))
def test_any_descriptors(noise: bytes, value: int) -> None:
    try:
        found = descriptors.interfaces(DEVICE + noise, value)
    except ValueError:
        return
    assert all(len(kind) == 6 for kinds in found.values() for kind in kinds)


def with_configurations(count: int) -> bytes:
    return DEVICE[:17] + bytes([count])


class Bus:
    """A root hub of vhci-hcd with its switch, and a device in its first port."""

    def __init__(self, kernel: FakeKernel) -> None:
        kernel.add_vhci(controllers=1, half=2)
        self.kernel = kernel
        self.port = next(p for p in vhci.ports(kernel) if p.half == "ss")
        self.path = vhci.device_path(kernel, self.port)
        self.device = Path(f"{kernel.root}/sys{self.path}")
        self.switch = self.device.parent / "interface_authorized_default"
        self.switch.write_text("1\n")
        self.show(self.device.parent)
        self.entry = journal.Entry(kernel, "2-1", "sys-usb", is_import=True)
        for name in ("interface_authorized_default", "authorized", "drivers_probe"):
            setattr(kernel, f"_write_{name}", lambda file, text: file.write_text(text))
        probe = Path(f"{kernel.root}{PROBE}")
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()

    def show(self, folder: Path) -> Path:
        """The link to a device, made if there is none."""
        link = Path(f"{self.kernel.root}/sys/bus/usb/devices/{folder.name}")
        if not link.is_symlink():
            link.symlink_to(folder)
        return link

    def unplug(self) -> None:
        shutil.rmtree(self.device)
        self.show(self.device).unlink()

    def judge(self, text: str) -> arrival.Judge:
        judge = arrival.Judge(self.kernel, Announcement(text), self.entry)
        judge.expect(self.port)
        return judge

    def plug(self, *interfaces: bytes, product: str = "46f4:0001", device: bytes = DEVICE) -> None:
        self.device.mkdir(exist_ok=True)
        self.show(self.device)
        vendor, _, number = product.partition(":")
        for name, text in (
            ("idVendor", vendor),
            ("idProduct", number),
            ("bConfigurationValue", "1"),
            ("busnum", "1"),
            ("devnum", "2"),
        ):
            (self.device / name).write_text(f"{text}\n")
        (self.device / "descriptors").write_bytes(device + configuration(1, *interfaces))
        for each in interfaces:
            if len(each) != 9:
                continue
            folder = self.device / f"{self.device.name}:1.{each[2]}"
            folder.mkdir(exist_ok=True)
            (folder / "authorized").write_text("0\n")

    def authorized(self) -> list[str]:
        return sorted(
            file.parent.name
            for file in self.device.glob("*/authorized")
            if file.read_text().strip() == "1"
        )

    def left(self) -> list[str]:
        return [n for n in self.kernel.listing(locks.LOCKS) if not n.startswith("import-")]


@pytest.fixture
def bus(kernel: FakeKernel) -> Bus:
    return Bus(kernel)


def test_what_was_announced_gets_a_driver_and_the_bus_is_as_it_was(bus: Bus) -> None:
    judge = bus.judge("46f4:0001 080650")
    assert bus.switch.read_text() == "0"
    bus.plug(interface(0, STICK))
    judge.judge(bus.path, bool)
    assert bus.authorized() == [f"{bus.device.name}:1.0"]
    assert judge.verdict() == b"\0"
    judge.forget()
    assert (bus.switch.read_text(), bus.left()) == ("1", [])


def test_all_are_authorized_before_the_first_gets_its_driver(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network card's driver claims the second interface, too."""
    judge = bus.judge("46f4:0001 020600 0a0000")
    bus.plug(interface(0, "020600"), interface(1, "0a0000"))
    seen: list[tuple[str, int]] = []

    def probe(_: Path, text: str) -> None:
        seen.append((text.partition(":")[2], len(bus.authorized())))

    monkeypatch.setattr(bus.kernel, "_write_drivers_probe", probe)
    judge.judge(bus.path, bool)
    assert seen == [("1.0", 2), ("1.1", 2)]
    judge.forget()


def test_another_interface_gets_none_and_is_told_of_once(bus: Bus) -> None:
    judge = bus.judge("46f4:0001 080650")
    bus.plug(interface(0, STICK), interface(1, KEYBOARD))
    judge.judge(bus.path, bool)
    assert bus.authorized() == [f"{bus.device.name}:1.0"]
    assert judge.verdict().startswith(b"\x09interface 1.1 (030101) was not announced")
    judge.forget()


def test_of_a_long_description_every_page_is_read(bus: Bus) -> None:
    judge = bus.judge("46f4:0001 080650")
    bus.plug(interface(0, STICK), b"\x02\x24" * 10000, interface(0, KEYBOARD, 1))
    with pytest.raises(PeerError, match="UP-641"):
        judge.judge(bus.path, bool)
    assert bus.authorized() == []
    judge.forget()


def test_descriptors_that_make_no_sense(bus: Bus) -> None:
    judge = bus.judge("46f4:0001 *")
    bus.plug(interface(0, STICK), b"\x09\x04")
    with pytest.raises(PeerError, match=r"but 46f4:0001 with descriptors that make no sense"):
        judge.judge(bus.path, bool)
    judge.forget()


def test_a_device_that_comes_while_another_one_is_judged_is_not_authorized(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = bus.judge("46f4:0001 080650")
    bus.plug(interface(0, STICK))
    judge.judge(bus.path, bool)
    bus.plug(interface(0, STICK))
    read = bus.kernel.read_long

    def exchanged(path: str, limit: int) -> bytes:
        before = read(path, limit)
        bus.unplug()
        bus.plug(interface(0, KEYBOARD))
        return before

    monkeypatch.setattr(bus.kernel, "read_long", exchanged)
    judge.judge_again(bus.path, bool)
    assert bus.authorized() == []
    judge.forget()


@pytest.mark.parametrize(
    ("announced", "interfaces", "device", "id"),
    [
        ("046d:0001 080650", [interface(0, STICK)], DEVICE, "UP-640"),
        ("46f4:0002 *", [interface(0, STICK)], DEVICE, "UP-640"),
        ("46f4:0001 *", [interface(0, "090000")], DEVICE, "UP-640"),
        ("46f4:0001 *", [interface(0, STICK)], DEVICE[:4] + b"\x09" + DEVICE[5:], "UP-640"),
        ("46f4:0001 0e0100", [interface(0, STICK)], DEVICE, "UP-641"),
        ("46f4:0001 080650", [interface(0, STICK), interface(0, KEYBOARD, 1)], DEVICE, "UP-641"),
    ],
)
def test_what_is_refused(
    bus: Bus, announced: str, interfaces: list[bytes], device: bytes, id: str
) -> None:
    judge = bus.judge(announced)
    bus.plug(*interfaces, device=device)
    with pytest.raises(PeerError) as refused:
        judge.judge(bus.path, bool)
    assert refused.value.id == id
    assert bus.authorized() == []
    judge.forget()
    assert bus.switch.read_text() == "1"


def test_a_later_change_is_judged_by_the_same_announcement(bus: Bus) -> None:
    judge = bus.judge("46f4:0001 080650")
    bus.plug(interface(0, STICK))
    judge.judge(bus.path, bool)
    bus.plug(interface(0, KEYBOARD))
    with pytest.raises(PeerError, match="UP-641"):
        judge.judge_again(bus.path, bool)
    (bus.device / "bConfigurationValue").write_text("\n")
    judge.judge_again(bus.path, bool)
    judge.forget()


def test_what_it_became_before_it_was_listened_to_is_judged(bus: Bus) -> None:
    """Whoever waits for udev's word takes the kernel's from the queue."""
    judge = bus.judge("46f4:0001 080650")
    bus.plug(interface(0, STICK))
    judge.judge(bus.path, bool)
    bus.plug(interface(0, KEYBOARD))
    near, far = socket.socketpair()
    with near, far, Uevents() as events, pytest.raises(PeerError, match="UP-641"):
        bus.kernel.link = near.fileno()
        far.close()
        usb_import._stay(bus.kernel, Link(bus.kernel), judge, events, bus.path)
    judge.forget()


def test_the_last_of_a_bus_opens_it(bus: Bus) -> None:
    first, second = bus.judge("46f4:0001 080650"), None
    bus.port = [p for p in vhci.ports(bus.kernel) if p.half == "ss"][1]
    second = bus.judge("46f4:0001 080650")
    first.forget()
    assert bus.switch.read_text() == "0"
    second.forget()
    assert (bus.switch.read_text(), bus.left()) == ("1", [])


def test_what_the_administrator_has_closed_stays_closed(bus: Bus) -> None:
    bus.switch.write_text("0\n")
    judge = bus.judge("46f4:0001 080650")
    judge.forget()
    assert bus.switch.read_text().strip() == "0"


def test_repair_opens_what_the_dead_have_closed(bus: Bus) -> None:
    bus.judge("46f4:0001 080650")
    lock = f"{locks.LOCKS}/{gates.LOCK}7.lock"
    bus.kernel.make_file(lock, "")
    repair.repair(bus.kernel)
    assert (bus.switch.read_text(), bus.left()) == ("1", [])
    assert not bus.kernel.exists(lock)


def test_what_cannot_be_taken_out_stays_without_a_driver(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attach(*arguments: Any) -> tuple[vhci.Port, str]:
        arguments[-1](bus.port)
        bus.plug(interface(0, KEYBOARD))
        return bus.port, bus.path

    def fail(*_: object) -> None:
        raise SystemLackError("UP-714", attachment="sys-usb-2-1", port=0)

    near, far = socket.socketpair()
    bus.kernel.link = near.fileno()
    monkeypatch.setattr(vhci, "attach", attach)
    monkeypatch.setattr(usb_import, "_unplug", fail)
    monkeypatch.setattr(Link, "use_both_ways", lambda _: None)
    lock = locks.import_lock(bus.kernel, Attachment("sys-usb-2-1"))
    with near, far:
        far.sendall(b"131074 5000\n")
        far.close()
        assert lock.acquire(0)
        with lock, pytest.raises(SystemLackError, match="UP-714"):
            announced = Announcement("46f4:0001 080650")
            report = usb_import.Report(bus.kernel, None, bus.kernel.now() + 5, announced)
            usb_import._import(bus.kernel, lock, Link(bus.kernel), report, bus.entry)
    assert (bus.switch.read_text(), bus.authorized()) == ("0", [])


def test_repair_gives_no_driver_to_what_could_not_be_taken_out(bus: Bus) -> None:
    bus.judge("46f4:0001 080650")
    bus.plug(interface(0, KEYBOARD))
    repair.repair(bus.kernel)
    assert (bus.switch.read_text(), bus.authorized()) == ("0", [])
    bus.unplug()
    repair.repair(bus.kernel)
    assert (bus.switch.read_text(), bus.left()) == ("1", [])


def test_repair_leaves_a_claim_that_passed_to_a_living_importer(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that repair has seen ends just then, and another one claims the same port."""
    first, look = bus.judge("46f4:0001 080650"), claims.attachments

    def look_and_wait(host: FakeKernel) -> dict[str, str]:
        found = look(host)
        monkeypatch.setattr(claims, "attachments", look)
        first.forget()
        bus.entry = journal.Entry(bus.kernel, "3-3", "sys-usb", is_import=True)
        bus.judge("46f4:0001 080650")
        return found

    monkeypatch.setattr(claims, "attachments", look_and_wait)
    with hold(bus.kernel, "import-sys-usb-3-3", "2 131077"):
        assert gates.repair(bus.kernel) == []
    assert (bus.switch.read_text(), list(look(bus.kernel).values())) == ("0", ["sys-usb-3-3"])


def test_repair_goes_on_with_the_next_bus(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    bus.judge("46f4:0001 080650")
    other = bus.show(bus.device.parent.parent / "usb99")
    other.resolve().mkdir()
    (other / "interface_authorized_default").write_text("0")
    bus.kernel.make_file(f"{locks.LOCKS}/{gates.GATE}99", "")

    def write(file: Path, text: str) -> None:
        if file == bus.switch:
            raise OSError(errno.EIO, "Input/output error")
        file.write_text(text)

    monkeypatch.setattr(bus.kernel, "_write_interface_authorized_default", write)
    with pytest.raises(SystemLackError, match="UP-756"):
        repair.repair(bus.kernel)
    assert (other / "interface_authorized_default").read_text() == "1"


def test_repair_goes_on_where_vhci_hcd_was_unloaded(bus: Bus) -> None:
    bus.judge("46f4:0001 080650")
    (bus.switch.parent / bus.switch.name).unlink()
    repair.repair(bus.kernel)
    assert bus.left() == []


def test_the_service_turns_it_off(bus: Bus) -> None:
    flag = Path(f"{bus.kernel.root}{arrival.ANY_INTERFACE}")
    flag.parent.mkdir(parents=True, exist_ok=True)
    flag.touch()
    judge = bus.judge("046d:0001 080650")
    assert (judge.is_needed, bus.switch.read_text()) == (False, "1\n")
    judge.judge(bus.path, bool)
    assert judge.verdict() == b"\0"


def test_a_switch_that_could_not_be_turned_off_is_not_turned_on(bus: Bus) -> None:
    def refuse(file: Path, _text: str) -> None:
        raise SystemLackError("UP-764")

    bus.kernel._write_interface_authorized_default = refuse  # type: ignore[attr-defined]
    judge = arrival.Judge(bus.kernel, Announcement("46f4:0001 080650"), bus.entry)
    with pytest.raises(SystemLackError, match="UP-764"):
        judge.expect(bus.port)
    judge.forget()
    assert (bus.left(), bus.switch.read_text()) == ([], "1\n")


def test_without_an_announcement_all_get_drivers_on_a_bus_closed_for_another(bus: Bus) -> None:
    bus.judge("46f4:0001 080650")
    bus.port = [p for p in vhci.ports(bus.kernel) if p.half == "ss"][1]
    bus.path = vhci.device_path(bus.kernel, bus.port)
    bus.device = Path(f"{bus.kernel.root}/sys{bus.path}")
    judge = arrival.Judge(bus.kernel, None, bus.entry)
    judge.expect(bus.port)
    bus.plug(interface(0, STICK), interface(1, KEYBOARD))
    judge.judge(bus.path, bool)
    assert bus.authorized() == [f"{bus.device.name}:1.{number}" for number in (0, 1)]


def test_a_device_that_has_gone_was_let_go_of_by_the_backend(bus: Bus) -> None:
    judge = bus.judge("46f4:0001 080650")
    with pytest.raises(PeerError, match="UP-615"):
        judge.judge(bus.path, bool)


def test_a_device_that_loses_its_configuration_is_left_alone(bus: Bus) -> None:
    judge = bus.judge("46f4:0001 080650")
    bus.plug(interface(0, STICK))
    (bus.device / "bConfigurationValue").write_text("\n")
    judge.judge_again(bus.path, bool)
    assert bus.authorized() == []


def test_no_driver_is_asked_for_once_it_is_over(bus: Bus) -> None:
    judge = bus.judge("46f4:0001 080650 030101")
    bus.plug(interface(0, STICK), interface(1, KEYBOARD))
    judge.judge(bus.path, lambda: True)
    probed = Path(f"{bus.kernel.root}{PROBE}").read_text()
    assert probed == f"{bus.device.name}:1.0"


def test_what_is_warned_of_is_bounded(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other side chooses how often a device is reset, and what it is then."""
    warnings: list[PeerError] = []
    monkeypatch.setattr(bus.entry, "warned", warnings.append)
    judge = bus.judge("46f4:0001 080650")
    for number in range(100):
        others = [interface(1, f"ff{number:04x}", setting) for setting in range(20)]
        bus.plug(interface(0, STICK), *others, interface(1, f"fe{number:04x}", 20))
        judge.judge_again(bus.path, bool)
    assert 0 < len(warnings) <= arrival.WARNINGS_LIMIT
    assert all(len(str(warning)) < 400 for warning in warnings)
