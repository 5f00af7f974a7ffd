# SPDX-License-Identifier: GPL-2.0-or-later
"""What the dead leave is removed; what the living have is not."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from usb_proxy import endings, repair
from usb_proxy.backend import exports, qubesdb, reenumeration
from usb_proxy.errors import ExitCode, SystemLackError
from usb_proxy.frontend import imports, records
from usb_proxy.idents import Attachment, BusId
from usb_proxy.locks import Lock, export_lock, import_lock
from usb_proxy.sysfs import UsbDevice

from .processes import Child, hold, leave, run

if TYPE_CHECKING:
    from .fake_kernel import FakeKernel

ATTACHMENT = Attachment("sys-usb-2-1")
ATTACHED, ENDING = "2 131073 attached", "2 131073 ending"
DEVID = 0x20005


@pytest.fixture(autouse=True)
def controllers(kernel: FakeKernel) -> None:
    kernel.add_vhci()


def export(kernel: FakeKernel, bus_id: str) -> None:
    """Put a device into the state of one that is attached elsewhere."""
    home = kernel.plug(bus_id, None)
    for name, text in (("match_busid", f"add {bus_id}"), ("bind", bus_id)):
        kernel.write(f"/sys/bus/usb/drivers/usbip-host/{name}", text)
    (home / "usbip_status").write_text("2\n")
    key = f"/qubes-usb-devices/{bus_id.replace('.', '_')}"
    kernel.run(["qubesdb-write", f"{key}/connected-to", "work", f"{key}/x-pid", "1"])


def remove(kernel: FakeKernel) -> bool:
    """Remove what is left of the attachment."""
    lock = import_lock(kernel, ATTACHMENT)
    assert lock.acquire(0)
    with lock:
        return imports.remove(kernel, ATTACHMENT, lock)


def test_repair_cleans_up_after_the_dead_alone(kernel: FakeKernel) -> None:
    for bus_id in ("2-1", "1-1.4"):
        export(kernel, bus_id)
    kernel.plug("3-1", "usbip-host")
    for number, backend in enumerate(("sys-usb", "other", "third")):
        kernel.occupy(number, DEVID + number)
        records.write(kernel, Attachment(f"{backend}-2-1"), number)
    leave(kernel, "export-2-1", "123")
    leave(kernel, "import-sys-usb-2-1", imports.note(0, DEVID))
    leave(kernel, "import-sys-usb-1-3", "")
    with hold(kernel, "export-1-1.4", "1"), hold(kernel, "import-other-2-1", f"1 {DEVID + 1}"):
        repair.repair(kernel)
        assert kernel.locks() == ["export-1-1.4.lock", "import-other-2-1.lock"]
    assert [kernel.driver(b) for b in ("2-1", "1-1.4", "3-1")] == ["usb"] + ["usbip-host"] * 2
    assert [kernel.published(key) for key in ("2-1", "1-1_4")] == [
        {"x-ended": "died"},
        {"connected-to": "work", "x-pid": "1"},
    ]
    assert kernel.used() == [1, 2]
    assert kernel.listing("/run/qubes") == [f"usb-import-{b}-2-1.state" for b in ("other", "third")]
    repair.repair(kernel)
    assert kernel.locks() == []
    assert kernel.used() == [2]


def test_repair_of_a_clean_machine_changes_nothing(kernel: FakeKernel) -> None:
    repair.repair(kernel)
    assert (kernel.written, kernel.locks(), kernel.calls("qubesdb-write")) == ([], [], [])


def end_export(kernel: FakeKernel, bus_id: str) -> None:
    """What is done for a dead exporter, its lock held."""
    lock = export_lock(kernel, BusId(bus_id))
    assert lock.acquire(0)
    with lock:
        exports.end(kernel, BusId(bus_id), lock, qubesdb.DIED)


@pytest.mark.parametrize("is_plugged", [False, True])
@pytest.mark.parametrize("keeps", [False, True])
def test_an_export_ends_with_or_without_its_device(
    kernel: FakeKernel, is_plugged: bool, keeps: bool
) -> None:
    kernel.haste = 20
    export(kernel, "2-1")
    if keeps:
        (kernel.tree / "run/qubes-service/usb-proxy-keep-unbound").touch()
    if not is_plugged:
        kernel.unplug("2-1")
    end_export(kernel, "2-1")
    assert kernel.locks() == []
    assert kernel.published("2-1") == ({"x-ended": "died"} if is_plugged else {})
    assert kernel.calls("qubesdb-write")[-1] == ["/qubes-usb-devices", ""]
    if is_plugged:
        assert kernel.driver("2-1") == (None if keeps else "usb")
        assert kernel.table() == {}


def test_another_device_that_was_plugged_in_since_is_left_alone(kernel: FakeKernel) -> None:
    export(kernel, "2-1")
    kernel.unplug("2-1")
    kernel.plug("2-1", "other")
    end_export(kernel, "2-1")
    assert kernel.driver("2-1") == "other"


@pytest.mark.parametrize(
    ("note", "record", "expected"),
    [
        ("", False, (False, [2])),
        ("", True, (True, [])),
        (f"2 {DEVID}", False, (True, [])),
        (f"2 {DEVID}", True, (True, [])),
        (f"2 {DEVID + 1}", False, (False, [2])),
        (f"2 {DEVID + 1}", True, (True, [2])),
        (f"0 {DEVID}", True, (True, [2])),
        (f"99 {DEVID}", False, (False, [2])),
    ],
)
def test_a_dead_importers_own_device_is_detached(
    kernel: FakeKernel, note: str, record: bool, expected: tuple[bool, list[int]]
) -> None:
    """The record counts only where no note says more."""
    kernel.occupy(2, DEVID)
    if note:
        leave(kernel, f"import-{ATTACHMENT}", note)
    if record:
        records.write(kernel, ATTACHMENT, 2)
    assert (remove(kernel), kernel.used()) == expected
    assert kernel.listing("/run/qubes") == []
    assert not remove(kernel)


def test_leftovers_are_removed_without_the_drivers(kernel: FakeKernel) -> None:
    kernel.unload("vhci-hcd")
    leave(kernel, f"import-{ATTACHMENT}", f"2 {DEVID}")
    records.write(kernel, ATTACHMENT, 2)
    repair.repair(kernel)
    assert (kernel.locks(), kernel.listing("/run/qubes")) == ([], [])


def test_a_process_that_does_not_end_is_told_of(kernel: FakeKernel) -> None:
    kernel.haste = 100
    with hold(kernel, "export-2-1") as holder, hold(kernel, "export-2-2") as other:
        handles = [os.pidfd_open(process.pid) for process in (holder, other)]
        with pytest.raises(SystemLackError, match="does not end, so the kernel keeps it"):
            endings.require_end(kernel, handles)
    for handle in handles:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(handle)


def test_a_port_that_a_living_importer_has_now_is_not_taken_from_it(kernel: FakeKernel) -> None:
    """Two USB qubes may well number their devices alike."""
    leave(kernel, f"import-{ATTACHMENT}", f"2 {DEVID}")
    kernel.occupy(2, DEVID)
    with hold(kernel, "import-other-2-1", f"2 {DEVID}"):
        repair.repair(kernel)
        assert kernel.used() == [2]


def test_an_old_record_takes_no_port_from_a_living_importer(kernel: FakeKernel) -> None:
    """A program that knows no locks left it; the port was given to another device since."""
    records.write(kernel, ATTACHMENT, 2)
    kernel.occupy(2, DEVID)
    lock = import_lock(kernel, ATTACHMENT)
    with hold(kernel, "import-other-2-1", f"2 {DEVID}"):
        assert lock.acquire(0)
        with lock:
            assert imports.remove(kernel, ATTACHMENT, lock)
        assert kernel.used() == [2]
    assert kernel.listing("/run/qubes") == []


def test_the_lock_is_still_held_after_the_others_were_looked_at(kernel: FakeKernel) -> None:
    """The kernel drops a process' lock when that closes the file, however often it is open."""
    name = f"import-{ATTACHMENT}"
    leave(kernel, name, f"2 {DEVID}")
    lock = import_lock(kernel, ATTACHMENT)
    assert lock.acquire(0)
    with lock:
        imports.remove(kernel, ATTACHMENT, lock)
        with Child(lambda: int(Lock(kernel, name).acquire(0))) as other:
            assert other.code() == 0


@pytest.mark.parametrize("note", ["x", "1", "1 2 3", "-1 5", "0 " + "9" * 90])
def test_a_note_that_makes_no_sense_blocks_nothing(kernel: FakeKernel, note: str) -> None:
    kernel.occupy(0, DEVID)
    kernel.occupy(1, DEVID)
    records.write(kernel, ATTACHMENT, 0)
    leave(kernel, "import-other-3-1", note)
    leave(kernel, f"import-{ATTACHMENT}", note)
    leave(kernel, "import-third-4-1", imports.note(1, DEVID))
    repair.repair(kernel)
    assert (kernel.used(), kernel.locks()) == ([], [])
    assert not kernel.exists("/run/qubes/usb-import-sys-usb-2-1.state")


@pytest.mark.parametrize("default", ["1", "0", None])
def test_what_comes_back_is_looked_after_where_the_kernel_would_allow_it(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, default: str | None
) -> None:
    """Elsewhere whoever pulls a device need not wait."""
    shut: list[str] = []
    monkeypatch.setattr(reenumeration, "shut", lambda _, device, __: shut.append(device.bus_id))
    export(kernel, "2-1")
    if default is not None:
        bus = kernel.plug("usb2", None)
        (bus / "authorized_default").write_text(f"{default}\n")
    with UsbDevice(kernel, BusId("2-1")) as device:
        exports.give_back(kernel, device, blocked=True)
        assert not shut
        kernel.unplug("2-1")
        exports.give_back(kernel, device, blocked=True)
    assert shut == (["2-1"] if default == "1" else [])


def test_what_its_reset_makes_another_one_is_looked_after(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.resets = None
    shut: list[str] = []
    monkeypatch.setattr(reenumeration, "shut", lambda _, device, __: shut.append(device.bus_id))
    export(kernel, "2-1")
    (kernel.plug("usb2", None) / "authorized_default").write_text("1\n")
    with UsbDevice(kernel, BusId("2-1")) as device:
        exports.give_back(kernel, device, blocked=True)
    assert shut == ["2-1"]


def test_a_notice_that_is_none_keeps_repair_from_nothing(kernel: FakeKernel) -> None:
    for bus_id in ("2-1", "2-2"):
        export(kernel, bus_id)
        leave(kernel, f"export-{bus_id}", "123")
    (kernel.tree / "run/qubes-usb-proxy/export-2-1.notice").mkdir()
    repair.repair(kernel)
    assert [kernel.driver(bus_id) for bus_id in ("2-1", "2-2")] == ["usb", "usb"]


@pytest.mark.parametrize("kind", ["export", "import"])
def test_what_is_being_cleaned_up_is_not_told_as_attached(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Whoever comes meanwhile waits, instead of being told to detach."""
    noted: list[str | None] = []
    name = "export-2-1" if kind == "export" else f"import-{ATTACHMENT}"
    leave(kernel, name, f"123 blocked-5 {endings.ATTACHED}" if kind == "export" else ATTACHED)

    def look(*_: object) -> None:
        path = kernel.tree / f"run/qubes-usb-proxy/{name}.lock"
        noted.append(path.read_text().splitlines()[0])

    monkeypatch.setattr(qubesdb, "unpublish", look)
    monkeypatch.setattr(records, "remove", look)
    repair.repair(kernel)
    assert noted == [f"123 blocked-5 {endings.ENDING}" if kind == "export" else ENDING]


@pytest.mark.parametrize("is_same", [True, False])
def test_what_was_taken_from_usbip_host_since_is_blocked_again(
    kernel: FakeKernel, is_same: bool
) -> None:
    """By hand, or as somebody unloaded it; but not another device in the same port."""
    home = kernel.plug("2-1", "usb")
    with UsbDevice(kernel, BusId("2-1")) as device:
        leave(kernel, "export-2-1", exports.note(kernel, device, endings.ATTACHED))
    if not is_same:
        kernel.unplug("2-1")
        home = kernel.plug("2-1", "usb")
    repair.repair(kernel)
    assert (home / "authorized").read_text().strip() == str(int(not is_same))


@pytest.mark.parametrize("kind", ["ours", "the kernel's"])
def test_repair_goes_on_and_tells_all(
    kernel: FakeKernel, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(_host: object, bus_id: BusId, _lock: Lock, _why: str) -> None:
        done.append(bus_id)
        if bus_id != "2-3":
            raise OSError(5, "I/O error", bus_id) if kind != "ours" else SystemLackError("UP-715")

    done: list[str] = []
    monkeypatch.setattr(exports, "end", end)
    for bus_id in ("2-1", "2-2", "2-3"):
        leave(kernel, f"export-{bus_id}", "1")
    assert run(kernel, "usb-repair") == ExitCode.SYSTEM
    assert done == ["2-1", "2-2", "2-3"]
    if kind != "ours":
        assert "cannot use 2-1: I/O error" in kernel.said()
        assert "cannot use 2-2: I/O error" in kernel.said() and "UP-101" not in kernel.said()


def test_a_strict_umask_closes_nothing(kernel: FakeKernel) -> None:
    before = os.umask(0o077)
    try:
        assert export_lock(kernel, BusId("2-1")).acquire(0)
        records.write(kernel, ATTACHMENT, 2)
    finally:
        os.umask(before)
    modes = [
        os.stat(kernel.tree / p).st_mode & 0o777
        for p in ("run/qubes-usb-proxy", f"run/qubes/usb-import-{ATTACHMENT}.state")
    ]
    assert modes == [0o755, 0o644]
