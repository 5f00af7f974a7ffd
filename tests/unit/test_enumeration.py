# SPDX-License-Identifier: GPL-2.0-or-later
"""What counts as a device that can be used; real kernels and udev are in the lab."""

from __future__ import annotations

import os
import select
import shutil
from typing import TYPE_CHECKING, cast

import pytest

from usb_proxy.errors import PeerError, SystemLackError
from usb_proxy.frontend import enumeration
from usb_proxy.frontend.enumeration import Enumeration
from usb_proxy.host import POLLRDHUP
from usb_proxy.qrexec import Link
from usb_proxy.uevents import LOST, UDEV, Uevents

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from usb_proxy.frontend.enumeration import Judgement

    from .fake_kernel import FakeKernel

PATH = "/devices/platform/vhci_hcd.0/usb3/3-1"
BIND = f"bind@{PATH}"
OWN = f"add@{PATH}/3-1:1.0"


class Script:
    """Events at their seconds, on a clock of its own that stands still while nobody waits."""

    def __init__(self, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[float, str]] = []
        self.time = 0.0
        self.is_over = False
        """Whether the connection has ended."""
        self._kernel = kernel
        self._fd = os.open(os.devnull, os.O_RDONLY)
        monkeypatch.setattr(kernel, "now", lambda: self.time)
        monkeypatch.setattr(kernel, "wait", self._wait)

    def fileno(self) -> int:
        return self._fd

    def _wait(self, events: Mapping[int, int], deadline: float) -> dict[int, int]:
        if self.is_over:
            return {fd: mask for fd, mask in events.items() if mask == POLLRDHUP}
        if not self.events or self.events[0][0] >= deadline:
            self.time = max(self.time, deadline)
            return {}
        self.time = max(self.time, self.events[0][0])
        return {self._fd: select.POLLIN}

    def pending(self) -> list[str]:
        event = self.events.pop(0)[1]
        if event == f"remove@{PATH}":
            shutil.rmtree(self._kernel.tree / f"sys{PATH}")
        if event == "block":
            (self._kernel.tree / f"sys{PATH}/authorized").write_text("0\n")
        if event == "let an interface pass":
            (self._kernel.tree / f"sys{PATH}/3-1:1.1/authorized").write_text("1\n")
        if event.startswith("authorize"):
            home = self._kernel.tree / f"sys{PATH}"
            (home / "authorized").write_text("1\n")
            (home / "bConfigurationValue").write_text("1\n")
        return [event]


@pytest.fixture
def home(kernel: FakeKernel) -> Path:
    home = kernel.tree / f"sys{PATH}"
    (home / "3-1:1.0/driver").mkdir(parents=True)
    (home / "3-1:1.1").mkdir()
    shown = {"authorized": "1", "bConfigurationValue": "1", "idVendor": "12ab", "idProduct": "00cd"}
    for name, text in shown.items():
        (home / name).write_text(f"{text}\n")
    return home


@pytest.fixture
def script(kernel: FakeKernel, home: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    return Script(kernel, monkeypatch)


def wait(
    kernel: FakeKernel,
    script: Script,
    *events: tuple[float, str],
    judge: Judgement = lambda *_: None,
    product: str = "",
) -> float:
    """Wait for the device while these come: when it was usable."""
    script.events = list(events)
    heard = cast("Uevents", script)
    setting_up = Enumeration(kernel, heard, PATH, Link(kernel), None)
    setting_up.await_usable(92, judge, product)
    return script.time


def udev_runs(kernel: FakeKernel) -> None:
    (kernel.tree / "run/udev/control").touch()


def test_where_no_udev_runs_the_kernels_word_is_enough(
    kernel: FakeKernel, peer: socket.socket, script: Script
) -> None:
    assert wait(kernel, script, (0.3, f"add@{PATH}"), (0.4, BIND)) == 0.4


@pytest.mark.parametrize(
    ("announced", "when"),
    [
        ([(0.5, f"add@{PATH}"), (0.6, f"bind@{PATH}/3-1:1.0")], 0.6),
        ([(0.5, f"bind@{PATH}/3-1:1.0"), (0.6, f"add@{PATH}")], 0.6),
        ([(0.5, f"add@{PATH}"), (0.6, f"add@{PATH}/3-1:1.0")], 2.4),
        ([(0.5, f"add@{PATH}"), (0.6, f"bind@{PATH}/3-1:1.1")], 2.4),
        ([(0.5, f"bind@{PATH}"), (3.0, f"bind@{PATH}/3-1:1.0")], 2.4),
        ([], 2.4),
    ],
)
def test_udev_is_waited_for_as_to_interfaces_with_a_driver(
    kernel: FakeKernel,
    peer: socket.socket,
    script: Script,
    announced: list[tuple[float, str]],
    when: float,
) -> None:
    udev_runs(kernel)
    told = [(time, UDEV + event) for time, event in announced]
    assert wait(kernel, script, (0.4, BIND), *told) == pytest.approx(when)


def test_what_udev_said_before_the_kernel_was_done_counts(
    kernel: FakeKernel, peer: socket.socket, script: Script
) -> None:
    udev_runs(kernel)
    events = [f"{UDEV}add@{PATH}", f"{UDEV}bind@{PATH}/3-1:1.0", BIND]
    assert wait(kernel, script, *((0.3, event) for event in events)) == 0.3


def test_events_that_were_lost_are_made_up_for(
    kernel: FakeKernel, peer: socket.socket, script: Script, home: Path
) -> None:
    (home / "driver").mkdir()
    assert wait(kernel, script, (0.3, LOST)) == 0.3


def test_one_whose_configuration_was_taken_away_is_judged_before_it_has_another(
    kernel: FakeKernel, peer: socket.socket, script: Script, home: Path
) -> None:
    """Whoever chooses that may take its interfaces at once."""
    (home / "bConfigurationValue").write_text("\n")
    seen: list[tuple[float, str]] = []

    def judge(path: str, _: object) -> None:
        assert path == PATH
        seen.append((script.time, (home / "bConfigurationValue").read_text().strip()))

    wait(kernel, script, (0.3, OWN), (0.4, BIND), (3, "authorize"), judge=judge)
    assert seen == [(0.4, ""), (3, "1")]


@pytest.mark.parametrize(
    ("events", "when", "id"),
    [
        ([], 15, "UP-616"),
        ([(14, OWN), (40, BIND)], 40, None),
        ([(14, OWN), (43, f"change@{PATH}/3-1:1.0/firmware/x"), (59, BIND)], 59, None),
        ([(14, OWN)], 44, "UP-621"),
        ([(float(s), OWN) for s in range(1, 90)], 60, "UP-621"),
        ([(14, f"add@{PATH[:-1]}2"), (28, f"add@{PATH[:-1]}12"), (29.5, BIND)], 29.5, None),
        ([(float(s), f"add@{PATH[:-1]}12") for s in range(1, 90)], 30, "UP-616"),
        ([(14, "add@/devices/pci0000:00/usb1/1-1"), (16, BIND)], 15, "UP-616"),
    ],
)
def test_events_of_the_device_give_it_time_within_a_bound(
    kernel: FakeKernel,
    peer: socket.socket,
    script: Script,
    *,
    events: list[tuple[float, str]],
    when: float,
    id: str | None,
) -> None:
    if id is None:
        assert wait(kernel, script, *events) == when
    else:
        with pytest.raises(PeerError, match=id):
            wait(kernel, script, *events)
        assert script.time == when


@pytest.mark.parametrize(
    ("authorized", "usbguard", "said"),
    [
        ("0", True, r"usbguard append-rule 'allow id 12ab:00cd' \[UP-750\]"),
        ("0", False, r"tee /sys/devices/platform/vhci_hcd.\*/usb\*/authorized_default \[UP-751\]"),
        ("1", True, r"12ab:00cd; see: .* \[UP-752\]"),
    ],
)
def test_a_device_without_a_configuration_is_no_success(
    kernel: FakeKernel,
    peer: socket.socket,
    script: Script,
    home: Path,
    *,
    authorized: str,
    usbguard: bool,
    said: str,
) -> None:
    (home / "authorized").write_text(f"{authorized}\n")
    (home / "bConfigurationValue").write_text("")
    if usbguard:
        kernel.command("usbguard")
    with pytest.raises(SystemLackError, match=said):
        wait(kernel, script, (0.4, BIND))
    assert script.time == pytest.approx(0.4 + enumeration.SETTLE_SECONDS)


@pytest.mark.parametrize("later", ["nobody", "a rule of udev"])
def test_interfaces_that_get_no_driver_are_no_success(
    kernel: FakeKernel, peer: socket.socket, script: Script, home: Path, later: str
) -> None:
    """Where somebody has closed the bus for them, unless one of them is let pass after all."""
    (home.parent / "interface_authorized_default").write_text("0\n")
    for name in ("3-1:1.0", "3-1:1.1"):
        (home / name / "authorized").write_text("0\n")
    if later == "nobody":
        with pytest.raises(SystemLackError, match=r"12ab:00cd; run: .*_default \[UP-761\]"):
            wait(kernel, script, (0.4, BIND))
        assert script.time == pytest.approx(0.4 + enumeration.SETTLE_SECONDS)
    else:
        assert wait(kernel, script, (0.4, BIND), (0.9, "let an interface pass")) == 0.9


@pytest.mark.parametrize("later", ["nobody", "a rule of udev"])
def test_where_no_device_gets_a_driver_by_itself(
    kernel: FakeKernel, peer: socket.socket, script: Script, later: str
) -> None:
    """It is not said of the device, nor after half a minute; another program may probe it."""
    (kernel.tree / "sys/bus/usb/drivers_autoprobe").write_text("0\n")
    if later == "nobody":
        with pytest.raises(SystemLackError, match=r"drivers_autoprobe \[UP-762\]"):
            wait(kernel, script, (0.3, f"add@{PATH}"))
        assert script.time == pytest.approx(0.3 + enumeration.SETTLE_SECONDS)
    else:
        assert wait(kernel, script, (0.3, f"add@{PATH}"), (1.0, BIND)) == 1.0


@pytest.mark.parametrize("events", [(), ((0.4, BIND),)], ids=["before it is bound", "bound"])
@pytest.mark.parametrize(
    ("usbguard", "said"),
    [
        (True, r"rejects .* run: sudo usbguard append-rule 'allow id 46f4:0001' \[UP-758\]"),
        (False, r"a program .* removed USB device 46f4:0001 .* \[UP-759\]"),
    ],
)
def test_a_device_that_is_removed_at_once_is_told_so(
    kernel: FakeKernel,
    peer: socket.socket,
    script: Script,
    *,
    events: tuple[tuple[float, str], ...],
    usbguard: bool,
    said: str,
) -> None:
    if usbguard:
        kernel.command("usbguard")
    (kernel.tree / f"sys{PATH}/bConfigurationValue").write_text("")
    with pytest.raises(SystemLackError, match=said):
        wait(kernel, script, (0.3, OWN), *events, (0.5, f"remove@{PATH}"), product="46f4:0001")
    assert script.time == pytest.approx(0.5 + enumeration.SETTLE_SECONDS)


@pytest.mark.parametrize(("event", "id"), [("block", "UP-750"), (f"remove@{PATH}", "UP-758")])
def test_a_device_that_usbguard_takes_a_little_later_is_none(
    kernel: FakeKernel, peer: socket.socket, script: Script, event: str, id: str
) -> None:
    """Where the kernel configures first, and usbguard decides after that."""
    udev_runs(kernel)
    kernel.command("usbguard")
    with pytest.raises(SystemLackError, match=id):
        wait(kernel, script, (0.3, OWN), (0.4, BIND), (0.5, event))


def test_one_that_is_pulled_meanwhile_is_not_blamed_on_a_program(
    kernel: FakeKernel, peer: socket.socket, script: Script, home: Path
) -> None:
    """The connection ends before the kernel removes the device."""

    def pulled(_path: str, _is_over: Callable[[], bool]) -> None:
        shutil.rmtree(home)
        script.is_over = True

    with pytest.raises(PeerError, match="UP-615"):
        wait(kernel, script, (0.3, OWN), (0.4, BIND), judge=pulled)


def test_a_device_that_is_set_up_anew_is_waited_for(
    kernel: FakeKernel, peer: socket.socket, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It changed when its driver reset it: the kernel removes it, and adds it again."""
    monkeypatch.setattr(shutil, "rmtree", lambda _: None)
    assert wait(kernel, script, (0.3, OWN), (0.4, f"remove@{PATH}"), (9.0, BIND)) == 9.0


def test_a_device_that_usbguard_allows_a_little_later_is_one(
    kernel: FakeKernel, peer: socket.socket, script: Script, home: Path
) -> None:
    (home / "authorized").write_text("0\n")
    (home / "bConfigurationValue").write_text("")
    assert wait(kernel, script, (0.4, BIND), (0.7, "authorize")) == 0.7


@pytest.mark.parametrize("had", [True, False])
def test_a_program_that_chooses_another_configuration_has_time_for_it(
    kernel: FakeKernel, peer: socket.socket, script: Script, home: Path, had: bool
) -> None:
    """One that had none may still get one soon, but nobody is known to be at work."""
    (home / "bConfigurationValue").write_text("")
    events = [(0.3, OWN if had else f"add@{PATH}"), (0.4, BIND), (6.0, "authorize")]
    if had:
        assert wait(kernel, script, *events) == 6.0
    else:
        with pytest.raises(SystemLackError, match="UP-752"):
            wait(kernel, script, *events)
        assert script.time == pytest.approx(0.4 + enumeration.SETTLE_SECONDS)


@pytest.mark.parametrize(("each", "drivers"), [(5.0, 12), (0.1, 32)])
def test_drivers_that_probe_while_a_device_is_judged_have_a_bound(
    kernel: FakeKernel, peer: socket.socket, script: Script, each: float, drivers: int
) -> None:
    """Each may wait for answers in the kernel, where nobody can stop it; between two one can."""
    done = []

    def judge(path: str, is_over: Callable[[], bool]) -> None:
        assert path == PATH
        for number in range(32):
            if number and is_over():
                raise AssertionError
            done.append(number)
            script.time += each

    if drivers == 32:
        wait(kernel, script, (0.4, BIND), judge=judge)
    else:
        with pytest.raises(PeerError, match="UP-621"):
            wait(kernel, script, (0.4, BIND), judge=judge)
    assert len(done) == drivers
