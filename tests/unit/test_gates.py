# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices with several configurations, all of which were announced."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from usb_proxy import locks, repair
from usb_proxy.errors import PeerError, SystemLackError
from usb_proxy.frontend import claims, gates, vhci

from .fake_kernel import FakeKernel
from .processes import Child
from .test_arrival import DEVICE, KEYBOARD, STICK, Bus, configuration, interface

BOTH = "46f4:0001 080650 030101"
OPEN, CLOSED, CLOSED_FOR_DEVICES = ("1", "1"), ("0", "1"), ("1", "0")
"""What is authorized by default on the bus: interfaces, and devices."""


class Phone(Bus):
    """A device with two configurations: a stick, and what a program may choose."""

    def __init__(self, kernel: FakeKernel) -> None:
        super().__init__(kernel)
        self.default = self.switch.with_name("authorized_default")
        self.default.write_text("1\n")
        kernel._write_authorized_default = self._become  # type: ignore[attr-defined]
        self.becomes_meanwhile = ""

    def _become(self, file: Path, text: str) -> None:
        file.write_text(text)
        if self.becomes_meanwhile:
            (self.device / "devnum").write_text(f"{self.becomes_meanwhile}\n")

    def come(self, number: int = 2, other: str = KEYBOARD) -> None:
        """It is plugged in, or has become another one when it was reset."""
        self.plug(interface(0, STICK))
        (self.device / "devnum").write_text(f"{number}\n")
        is_closed = self.defaults()[1] == "0"
        (self.device / "authorized").write_text("0\n" if is_closed else "1\n")
        if is_closed:
            (self.device / "bConfigurationValue").write_text("\n")
        shown = configuration(1, interface(0, STICK)) + configuration(2, interface(0, other))
        (self.device / "descriptors").write_bytes(DEVICE[:17] + bytes([2]) + shown)

    def defaults(self) -> tuple[str, str]:
        return self.switch.read_text().strip(), self.default.read_text().strip()

    def is_authorized(self) -> bool:
        return (self.device / "authorized").read_text().strip() == "1"

    def beside(self) -> None:
        """From now on the second port is meant."""
        self.port = [p for p in vhci.ports(self.kernel) if p.half == "ss"][1]
        self.path = vhci.device_path(self.kernel, self.port)
        self.device = Path(f"{self.kernel.root}/sys{self.path}")


@pytest.fixture
def phone(kernel: FakeKernel) -> Phone:
    return Phone(kernel)


def test_what_a_program_chooses_may_be_taken_at_once(phone: Phone) -> None:
    judge = phone.judge(BOTH)
    assert phone.defaults() == CLOSED
    phone.come()
    judge.judge(phone.path, bool)
    assert phone.defaults() == CLOSED_FOR_DEVICES
    assert phone.authorized() == [f"{phone.device.name}:1.0"]
    judge.forget()
    assert (phone.defaults(), phone.left()) == (OPEN, [])


def test_before_it_has_a_configuration(phone: Phone) -> None:
    """A rule of udev takes it away, and starts the program."""
    judge = phone.judge(BOTH)
    phone.come()
    (phone.device / "bConfigurationValue").write_text("\n")
    judge.judge(phone.path, bool)
    assert phone.defaults() == CLOSED_FOR_DEVICES and phone.is_authorized()
    judge.forget()


@pytest.mark.parametrize(
    ("announced", "other"),
    [("46f4:0001 080650", KEYBOARD), ("46f4:0001 *", "090000"), (f"{BOTH} 090000", "090000")],
)
def test_what_was_not_announced_is_judged_first(phone: Phone, announced: str, other: str) -> None:
    """As any hub."""
    judge = phone.judge(announced)
    phone.come(other=other)
    judge.judge(phone.path, bool)
    assert phone.defaults() == CLOSED
    judge.forget()
    assert (phone.defaults(), phone.left()) == (OPEN, [])


def test_one_configuration_needs_none_of_this(phone: Phone) -> None:
    judge = phone.judge("46f4:0001 080650")
    phone.plug(interface(0, STICK))
    judge.judge(phone.path, bool)
    assert phone.defaults() == CLOSED
    judge.forget()


@pytest.mark.parametrize("announced", ["46f4:0001 080650", "46f4:0001 080650 030101"])
def test_beside_another_device(phone: Phone, announced: str) -> None:
    """Nobody's unannounced interface gets a driver, in whatever order they come and go."""
    first = phone.judge(BOTH)
    phone.come()
    first.judge(phone.path, bool)
    phone.beside()
    second = phone.judge(announced)
    assert phone.defaults() == CLOSED
    phone.plug(interface(0, STICK), interface(1, KEYBOARD))
    second.judge(phone.path, bool)
    assert phone.defaults() == CLOSED
    second.judge_again(phone.path, bool)
    assert phone.defaults() == (CLOSED_FOR_DEVICES if KEYBOARD in announced else CLOSED)
    second.forget()
    assert phone.defaults() == CLOSED_FOR_DEVICES
    first.forget()
    assert (phone.defaults(), phone.left()) == (OPEN, [])


def test_what_it_becomes_when_it_is_reset_is_judged(phone: Phone) -> None:
    judge = phone.judge(BOTH)
    phone.come()
    judge.judge(phone.path, bool)
    phone.come(3, other="0e0100")
    assert not phone.is_authorized()
    judge.judge_again(phone.path, bool)
    assert phone.defaults() == CLOSED and phone.is_authorized()
    assert phone.authorized() == []
    phone.come(3, other="0e0100")
    judge.judge_again(phone.path, bool)
    assert phone.defaults() == CLOSED
    phone.come(4)
    judge.judge_again(phone.path, bool)
    assert phone.defaults() == CLOSED_FOR_DEVICES
    judge.forget()


def test_another_product_is_refused_before_it_is_configured(phone: Phone) -> None:
    judge = phone.judge(BOTH)
    phone.come()
    judge.judge(phone.path, bool)
    phone.come(3)
    (phone.device / "idProduct").write_text("0002\n")
    with pytest.raises(PeerError, match="UP-640"):
        judge.judge_again(phone.path, bool)
    assert not phone.is_authorized()
    judge.forget()


def test_one_that_changes_just_then_is_judged_first(phone: Phone) -> None:
    """It has come before the bus was closed for it."""
    judge = phone.judge(BOTH)
    phone.come()
    phone.becomes_meanwhile = "3"
    judge.judge(phone.path, bool)
    assert phone.switch.read_text() == "0"
    judge.judge_again(phone.path, bool)
    assert phone.defaults() == CLOSED_FOR_DEVICES
    judge.forget()
    assert (phone.defaults(), phone.left()) == (OPEN, [])


@pytest.mark.parametrize("who", ["the administrator", "usbguard"])
def test_what_others_keep_out_stays_so(phone: Phone, who: str) -> None:
    if who == "usbguard":
        phone.kernel.command("usbguard")
    else:
        phone.default.write_text("0\n")
    before = phone.default.read_text()
    judge = phone.judge(BOTH)
    phone.come()
    (phone.device / "bConfigurationValue").write_text("1\n")
    judge.judge(phone.path, bool)
    phone.come(3)
    (phone.device / "bConfigurationValue").write_text("\n")
    (phone.device / "authorized").write_text("0\n")
    judge.judge_again(phone.path, bool)
    assert (phone.switch.read_text(), phone.default.read_text()) == ("0", before)
    assert not phone.is_authorized()
    judge.forget()


def test_what_somebody_blocks_by_hand_stays_so(phone: Phone) -> None:
    judge = phone.judge(BOTH)
    phone.come()
    judge.judge(phone.path, bool)
    (phone.device / "authorized").write_text("0\n")
    (phone.device / "bConfigurationValue").write_text("\n")
    judge.judge_again(phone.path, bool)
    assert not phone.is_authorized()
    judge.forget()


def test_what_others_plug_in_is_authorized_where_udev_comes_too_late(phone: Phone) -> None:
    judge = phone.judge(BOTH)
    phone.come()
    judge.judge(phone.path, bool)
    phone.beside()
    phone.come(7)
    assert not phone.is_authorized()
    judge.forget()
    assert phone.is_authorized()


def test_a_bus_is_had_as_soon_as_a_living_importer_lets_go(phone: Phone) -> None:
    ready, tell = os.pipe()

    def body() -> None:
        with locks.Lock(phone.kernel, f"{gates.LOCK}{phone.device.name.partition('-')[0]}") as lock:
            assert lock.acquire(0)
            os.write(tell, b"x")
            time.sleep(0.2)
        signal.pause()

    with Child(body) as importer:
        os.read(ready, 1)
        began = time.monotonic()
        judge = phone.judge(BOTH)
        assert time.monotonic() - began < gates.LOCK_SECONDS / 2
        assert not importer.ended()
    judge.forget()
    for fd in (ready, tell):
        os.close(fd)


def test_repair_opens_for_devices_what_the_dead_have_closed(phone: Phone) -> None:
    judge = phone.judge(BOTH)
    phone.come()
    judge.judge(phone.path, bool)
    phone.unplug()
    repair.repair(phone.kernel)
    assert (phone.defaults(), phone.left()) == (OPEN, [])


def test_repair_does_what_the_dead_left_undone_for_another_device(phone: Phone) -> None:
    """Whoever was beside it died once its claim had gone."""
    judge = phone.judge(BOTH)
    phone.come()
    judge.judge(phone.path, bool)
    phone.beside()
    phone.judge("46f4:0001 080650")
    assert phone.defaults() == CLOSED
    phone.kernel.remove(f"{locks.LOCKS}/{claims.CLAIM}{phone.device.name}")
    repair.repair(phone.kernel)
    assert phone.defaults() == CLOSED_FOR_DEVICES
    judge.forget()


def test_a_claim_says_for_whom_it_is(phone: Phone) -> None:
    judge = phone.judge(BOTH)
    phone.come()
    judge.judge(phone.path, bool)
    assert claims.attachments(phone.kernel) == {phone.device.name: "sys-usb-2-1"}
    (noted,) = claims.on(phone.kernel, phone.device.name.partition("-")[0]).values()
    assert noted == "sys-usb-2-1 2 several"
    assert gates.is_closed(phone.kernel, phone.device.name)
    judge.forget()


@pytest.mark.parametrize("at", range(9))
def test_whatever_ends_it_repair_opens_the_bus(
    phone: Phone, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """At each change of a file."""
    count = 0

    def watched(change: Callable[..., None]) -> Callable[..., None]:
        def watch(*arguments: Any) -> None:
            nonlocal count
            count += 1
            if count == at + 1:
                raise OSError(errno.EIO, "it ends here")
            change(*arguments)

        return watch

    for name in ("write", "make_file", "remove"):
        monkeypatch.setattr(phone.kernel, name, watched(getattr(phone.kernel, name)))
    with pytest.raises((OSError, SystemLackError)):
        judge = phone.judge(BOTH)
        phone.come()
        judge.judge(phone.path, bool)
        phone.come(3, other="0e0100")
        judge.judge_again(phone.path, bool)
    monkeypatch.undo()
    if phone.device.exists():
        phone.unplug()
    repair.repair(phone.kernel)
    assert (phone.defaults(), phone.left()) == (OPEN, [])
