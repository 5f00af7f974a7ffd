# SPDX-License-Identifier: GPL-2.0-or-later
"""Records for other programs, in a folder where others may plant things."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from usb_proxy import journal
from usb_proxy.frontend import records
from usb_proxy.host import Host
from usb_proxy.idents import Attachment

from .processes import Child

if TYPE_CHECKING:
    from pathlib import Path

    from .fake_kernel import FakeKernel

ATTACHMENT = Attachment("sys-usb-2-1")


def record(kernel: FakeKernel) -> Path:
    """The file of the record."""
    return kernel.tree / "run/qubes" / f"usb-import-{ATTACHMENT}.state"


def test_a_record_is_where_other_programs_look_for_it(kernel: FakeKernel) -> None:
    records.write(kernel, ATTACHMENT, 12)
    assert records.path_of(ATTACHMENT) == "/run/qubes/usb-import-sys-usb-2-1.state"
    assert record(kernel).read_text() == "12\n"
    assert record(kernel).stat().st_mode & 0o777 == 0o644 & ~os.umask(os.umask(0o022))
    assert kernel.listing("/run/qubes") == [record(kernel).name]
    assert records.read(kernel, ATTACHMENT) == 12
    records.remove(kernel, ATTACHMENT)
    records.remove(kernel, ATTACHMENT)
    assert kernel.listing("/run/qubes") == []
    assert records.read(kernel, ATTACHMENT) is None


def test_a_planted_link_is_replaced_and_not_followed(kernel: FakeKernel) -> None:
    victim = kernel.tree / "victim"
    victim.write_text("7\n")
    record(kernel).symlink_to(victim)
    fresh = kernel.tree / f"run/qubes/.usb-import-{ATTACHMENT}"
    fresh.symlink_to(victim)
    assert records.read(kernel, ATTACHMENT) is None
    records.write(kernel, ATTACHMENT, 12)
    assert (victim.read_text(), record(kernel).is_symlink()) == ("7\n", False)
    assert records.read(kernel, ATTACHMENT) == 12
    record(kernel).unlink()
    record(kernel).symlink_to(victim)
    records.remove(kernel, ATTACHMENT)
    assert victim.exists()


@pytest.mark.parametrize("planted", ["folder", "no /run/qubes"])
def test_a_record_that_cannot_be_written_is_a_warning(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, planted: str
) -> None:
    if planted == "folder":
        record(kernel).mkdir()
    else:
        (kernel.tree / "run/qubes").rmdir()
    before = kernel.listing("/run/qubes")
    warnings: list[str] = []
    monkeypatch.setattr(journal.Entry, "warned", lambda _, error: warnings.append(error.id))
    records.write(kernel, ATTACHMENT, 12)
    assert warnings == ["UP-717"]
    assert kernel.listing("/run/qubes") == before


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("", None),
        ("\n", None),
        ("x\n", None),
        ("-1\n", None),
        ("1 2\n", None),
        ("1" * 6, None),
        (" 1\n", None),
        ("¹\n", None),
        ("\x00" * 70000, None),
        ("0x1\n", None),
        ("0", 0),
        ("7\n", 7),
        ("7\nsys-usb 2-1\n", 7),
        ("00007\n", 7),
    ],
)
def test_a_record_of_another_is_taken_or_ignored(
    kernel: FakeKernel, text: str, port: int | None
) -> None:
    record(kernel).write_text(text)
    assert records.read(kernel, ATTACHMENT) == port


def test_a_record_that_is_a_folder_is_ignored(kernel: FakeKernel) -> None:
    record(kernel).mkdir()
    assert records.read(kernel, ATTACHMENT) is None


def test_a_planted_fifo_hangs_nobody(kernel: FakeKernel) -> None:
    os.mkfifo(record(kernel))
    with Child(lambda: int(records.read(kernel, ATTACHMENT) is not None)) as child:
        deadline = kernel.now() + 1
        while kernel.now() < deadline and not child.ended():
            Host.wait(kernel, {}, kernel.now() + 0.01)
        assert child.ended()


def test_a_planted_folder_in_place_of_a_record_stops_no_cleaning_up(kernel: FakeKernel) -> None:
    record(kernel).mkdir()
    records.remove(kernel, ATTACHMENT)
    assert record(kernel).is_dir()
