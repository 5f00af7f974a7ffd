# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices whose disks this qube uses."""

from __future__ import annotations

import errno
import json
import os
from typing import TYPE_CHECKING

import pytest

from usb_proxy.backend import usage
from usb_proxy.errors import ExitCode, InUseError, SystemLackError
from usb_proxy.idents import BusId
from usb_proxy.sysfs import UsbDevice

from .processes import Running, run, wait_for
from .test_journal import entries

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path

    from .fake_kernel import FakeKernel
    from .test_journal import Entries

__all__ = ["entries"]

OTHERS = "30 25 0:9 / /some/where rw - tmpfs tmpfs rw\n"
BTRFS = "36 25 0:45 / /media/stick rw - btrfs /dev/sda1 rw\n"
MOUNT = "36 25 8:1 / /media/stick rw - ext4 /dev/sda1 rw\n"
SWAPS = "Filename Type Size Used Priority\n/dev/sda1 partition 9 0 -2\n"


def add_disk(kernel: FakeKernel, home: Path, name: str, parts: tuple[str, ...] = ()) -> None:
    """Give a device a disk, with partitions."""
    disk = home / "2-1:1.0/host0/target0:0:0/0:0:0:0/block" / name
    for number, folder in enumerate([disk, *(disk / part for part in parts)]):
        folder.mkdir(parents=True)
        (folder / "dev").write_text(f"8:{number}\n")
        link = kernel.tree / "sys/class/block" / folder.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to("../../" + str(folder.relative_to(kernel.tree / "sys")))
        (kernel.tree / "dev" / folder.name).touch()


@pytest.fixture
def opened(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, list[str] | int]]:
    """What is opened exclusively: `names`, and the `error` that the kernel answers with."""
    seen: dict[str, list[str] | int] = {"names": [], "error": 0}
    names: list[str] = []
    seen["names"] = names
    really = os.open

    def answer(path: str, flags: int, *args: int, **more: int) -> int:
        if flags & os.O_EXCL and not flags & os.O_CREAT:
            assert flags & os.O_NONBLOCK  # or the tray of an optical drive moves
            names.append(path.removeprefix(f"{kernel.tree}/dev/"))
            if number := seen["error"]:
                assert isinstance(number, int)
                raise OSError(number, os.strerror(number))
        return really(path, flags, *args, **more)

    monkeypatch.setattr("usb_proxy.files.os.open", answer)
    yield seen


def test_its_disks_are_claimed_and_let_go(
    kernel: FakeKernel, opened: dict[str, list[str] | int]
) -> None:
    """Not their partitions, which are claimed with them; nor a disk of another device."""
    add_disk(kernel, kernel.plug("2-1"), "sda", ("sda1", "sda2"))
    add_disk(kernel, kernel.plug("2-11"), "sdb")
    before = len(os.listdir("/proc/self/fd"))
    with UsbDevice(kernel, BusId("2-1")) as device:
        with usage.Claim(kernel, device):
            assert opened["names"] == ["sda"]
            assert len(os.listdir("/proc/self/fd")) == before + 2
        assert len(os.listdir("/proc/self/fd")) == before + 1


def test_a_device_without_disks_opens_nothing(
    kernel: FakeKernel, opened: dict[str, list[str] | int]
) -> None:
    kernel.plug("2-1")
    with UsbDevice(kernel, BusId("2-1")) as device, usage.Claim(kernel, device):
        assert opened["names"] == []


@pytest.mark.parametrize("number", [errno.ENOMEDIUM, errno.ENXIO, errno.ENODEV])
def test_a_reader_without_a_card_is_not_in_use(
    kernel: FakeKernel, opened: dict[str, list[str] | int], number: int
) -> None:
    add_disk(kernel, kernel.plug("2-1"), "sda")
    opened["error"] = number
    with UsbDevice(kernel, BusId("2-1")) as device, usage.Claim(kernel, device):
        assert opened["names"] == ["sda"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOENT])
def test_what_else_the_kernel_answers_is_told(
    kernel: FakeKernel, opened: dict[str, list[str] | int], number: int
) -> None:
    """Also of a disk that is there without its node: it may be mounted all the same."""
    add_disk(kernel, kernel.plug("2-1"), "sda")
    opened["error"] = number
    with UsbDevice(kernel, BusId("2-1")) as device, pytest.raises(SystemLackError):
        usage.Claim(kernel, device)


def test_a_disk_without_a_node_is_named(
    kernel: FakeKernel, opened: dict[str, list[str] | int]
) -> None:
    """Where services have a /dev of their own, plugging it in again does not help."""
    add_disk(kernel, kernel.plug("2-1"), "sda")
    (kernel.tree / "dev/sda").unlink()
    with (
        UsbDevice(kernel, BusId("2-1")) as device,
        pytest.raises(SystemLackError, match=r"/dev/sda.*UP-760"),
    ):
        usage.Claim(kernel, device)
    assert opened["names"] == ["sda"]


def test_a_disk_that_has_just_gone_is_not_in_use(
    kernel: FakeKernel, opened: dict[str, list[str] | int], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_disk(kernel, kernel.plug("2-1"), "sda")
    opened["error"] = errno.ENOENT
    monkeypatch.setattr(kernel, "exists", lambda *_: False)
    with UsbDevice(kernel, BusId("2-1")) as device, usage.Claim(kernel, device):
        assert opened["names"] == ["sda"]


@pytest.mark.parametrize(
    ("path", "text", "told"),
    [
        ("proc/self/mountinfo", MOUNT, "sda1 is mounted at /media/stick"),
        # The kernel gives a page at a time, and new mounts come last.
        ("proc/self/mountinfo", OTHERS * 400 + MOUNT, "sda1 is mounted at /media/stick"),
        ("proc/self/mountinfo", BTRFS, "sda1 is mounted at /media/stick"),
        ("proc/swaps", SWAPS, "sda1 is swap"),
        ("sys/class/block/sda1/holders/dm-0", "", "sda1 is part of dm-0"),
        ("proc/x", "", "another namespace"),
    ],
)
def test_by_what_it_is_used_is_for_the_journal(
    kernel: FakeKernel, opened: dict[str, list[str] | int], path: str, text: str, told: str
) -> None:
    add_disk(kernel, kernel.plug("2-1"), "sda", ("sda1",))
    opened["error"] = errno.EBUSY
    (kernel.tree / path).parent.mkdir(parents=True, exist_ok=True)
    (kernel.tree / path).write_text(text)
    with UsbDevice(kernel, BusId("2-1")) as device, pytest.raises(InUseError) as raised:
        usage.Claim(kernel, device)
    assert told in raised.value.aside
    assert told not in str(raised.value)


@pytest.mark.usefixtures("agent", "peer")
def test_what_is_in_use_is_not_lent(
    kernel: FakeKernel, opened: dict[str, list[str] | int], entries: Entries
) -> None:
    add_disk(kernel, kernel.plug("2-1"), "sda", ("sda1",))
    (kernel.tree / "proc/self").mkdir(parents=True)
    (kernel.tree / "proc/self/mountinfo").write_text(MOUNT)
    opened["error"] = errno.EBUSY
    assert run(kernel, "usb-export", "2-1") == ExitCode.IN_USE
    assert run(kernel, "usb-reset", "2-1") == ExitCode.IN_USE
    (entry,) = entries()
    assert "sda1 is mounted at /media/stick" in entry["MESSAGE"]
    assert "sda" not in kernel.said() and "/media" not in kernel.said()
    assert (kernel.written, kernel.locks(), kernel.driver("2-1")) == ([], [], "usb")


@pytest.mark.usefixtures("agent")
def test_the_check_can_be_turned_off(
    kernel: FakeKernel, opened: dict[str, list[str] | int]
) -> None:
    add_disk(kernel, kernel.plug("2-1"), "sda")
    opened["error"] = errno.EBUSY
    (kernel.tree / "run/qubes-service/usb-proxy-lend-in-use").touch()
    with UsbDevice(kernel, BusId("2-1")) as device, usage.Claim(kernel, device):
        assert opened["names"] == []


def test_status_says_by_what_a_device_is_used(kernel: FakeKernel) -> None:
    """As every user sees it, without a look at the disk itself."""
    add_disk(kernel, kernel.plug("2-1"), "sda", ("sda1",))
    kernel.plug("2-2")
    (kernel.tree / "proc/self").mkdir(parents=True)
    (kernel.tree / "proc/self/mountinfo").write_text(MOUNT.replace("stick", "st\033ick\\040"))
    kernel.privileged = False
    assert run(kernel, "qubes-usb-proxy", "status") == ExitCode.OK
    shown = kernel.shown()
    used = "2-1 is in use in this qube: sda1 is mounted at /media/st ick\\040 [UP-410].\n"
    assert used in shown and shown.count("in use") == 2
    assert "(in use here)" in next(line for line in shown.splitlines() if line.startswith("2-1 "))
    assert run(kernel, "qubes-usb-proxy", "status", "--json") == ExitCode.OK
    used_by = {d["device"]: d["used_by"] for d in json.loads(kernel.shown())["devices"]}
    assert used_by == {"2-1": ["sda1 is mounted at /media/st ick\\040"], "2-2": []}


@pytest.mark.usefixtures("opened")
def test_a_disk_that_another_qube_has_is_in_use(kernel: FakeKernel) -> None:
    """By qvm-block, whose driver in the kernel claims nothing."""
    add_disk(kernel, kernel.plug("2-1"), "sda", ("sda1",))
    number = (kernel.tree / "sys/class/block/sda1/dev").read_text().strip()
    shared = kernel.tree / "sys/bus/xen-backend/devices/vbd-5-51712/physical_device"
    shared.parent.mkdir(parents=True)
    with UsbDevice(kernel, BusId("2-1")) as device:
        for text in ("", "fd:0\n"):
            shared.write_text(text)
            usage.Claim(kernel, device).release()
        shared.write_text(":".join(f"{int(part):x}" for part in number.split(":")) + "\n")
        with pytest.raises(InUseError, match="UP-410") as raised:
            usage.Claim(kernel, device)
    assert raised.value.aside == "sda1 is attached to another qube by qvm-block"


@pytest.mark.usefixtures("opened")
@pytest.mark.parametrize("path", ["/dev/sda1", "/dev/sda", "/srv/sda1", "/dev/sdb"])
def test_a_disk_that_a_loop_device_is_made_of_is_in_use(kernel: FakeKernel, path: str) -> None:
    """Its driver claims nothing either."""
    add_disk(kernel, kernel.plug("2-1"), "sda", ("sda1",))
    file = kernel.tree / "sys/class/block/loop3/loop/backing_file"
    file.parent.mkdir(parents=True)
    (file.parents[2] / "loop4").mkdir()
    with UsbDevice(kernel, BusId("2-1")) as device:
        usage.Claim(kernel, device).release()
        file.write_text(f"{path}\n")
        if path.startswith("/dev/sda"):
            with pytest.raises(InUseError, match="UP-410") as raised:
                usage.Claim(kernel, device)
            assert raised.value.aside == f"{path.removeprefix('/dev/')} is part of loop3"
        else:
            usage.Claim(kernel, device).release()


@pytest.mark.usefixtures("agent")
def test_what_is_lent_is_not_reset(kernel: FakeKernel, peer: socket.socket) -> None:
    kernel.plug("1-1.4", devnum="5")
    exporter = Running(kernel, "usb-export", "1-1.4")
    assert peer.recv(100) == b"131077 480\n"
    wait_for(lambda: len(kernel.published("1-1_4")) == 3, "the publication")
    assert run(kernel, "usb-reset", "1-1.4") == ExitCode.IN_USE
    assert "1-1.4 is attached already; detach it first [UP-401]" in kernel.said()
    peer.close()
    assert exporter.code() == ExitCode.OK
