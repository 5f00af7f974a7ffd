# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands that meet: many at once, one during the other, twice, and without a pause."""

import time
from collections import Counter

from tests.lab.guests import BACKEND, FRONTEND
from tests.lab.router import Completed

from . import steps
from .conftest import Faults, said_well
from .table import After, Case, each

RECORDS, LOCKS = "/run/qubes", "/run/qubes-usb-proxy"
SLOTS = 16
TOO_MANY = (
    r"usbip-host already has 16 devices, its limit, and cannot take [-0-9.]+; "
    r"detach one first, or restart this qube if nothing is attached"
)
TAKEN = r"attached already; detach it first|attached to this qube already"
NOT_ATTACHED = r"is not attached to (this|any) qube"
LOST = rf"{TAKEN}|ended the connection|closed the connection|stopped by a signal|is not attached:"

TWENTY = Case("races", "twenty attaches of different devices at once", told=TOO_MANY)
TWO = Case("races", "two frontends after one device", told=TAKEN)
AGAIN = Case("races", "an attach of what is attached", told=TAKEN, short=True)
DURING_ATTACH = [
    Case(
        "races",
        f"a detach in {side} during an attach",
        f"{program}: {step}",
        told=LOST,
        may_succeed=True,
        after=After.EITHER,
        short=(program, step) == ("usb-import", "vhci.attach write attach"),
        data={
            "guest": guest,
            "program": program,
            "journey": "attach",
            "step": step,
            "side": side,
        },
    )
    for guest, program, recording in (
        (BACKEND, "usb-export", "usb-export"),
        (FRONTEND, "usb-import", "usb-import"),
    )
    for number, step in enumerate(steps.changes(steps.ALL[recording]))
    for side in ((BACKEND, FRONTEND)[number % 2],)
]
DURING_DETACH = [
    Case(
        "races",
        f"an attach during a detach in {side}",
        f"{program}: {step}",
        told=LOST,
        may_succeed=True,
        after=After.EITHER,
        short=(program, step) == ("usb-export", "usbip_host.give_back write rebind"),
        data={"guest": guest, "program": program, "journey": f"detach in {side}", "step": step},
    )
    for guest, program, recording, side in (
        (BACKEND, "usb-export", "usb-export, its end", FRONTEND),
        (FRONTEND, "usb-import", "usb-import, its end", BACKEND),
        (BACKEND, "usb-detach", "usb-detach in sys-usb", BACKEND),
        (FRONTEND, "usb-detach", "usb-detach in work", FRONTEND),
    )
    for step in steps.changes(steps.ALL[recording])
]
TWICE = [
    Case("races", f"a second detach in {side}", told=NOT_ATTACHED, data={"side": side})
    for side in (BACKEND, FRONTEND)
]
TOGETHER = Case("races", "detaches in both qubes at once", told=NOT_ATTACHED, may_succeed=True)
CYCLES = [
    Case("races", f"attach and detach {count} times without a pause", data={"count": str(count)})
    for count in (10, 200)
]
STALE = [
    Case(
        "races",
        f"a dead importer's note of a port that another device has, {whose} number",
        data={"same": "yes" if whose == "the same" else ""},
    )
    for whose in ("another", "the same")
]
CASES = [TWENTY, TWO, AGAIN, *DURING_ATTACH, *DURING_DETACH, *TWICE, TOGETHER, *CYCLES, *STALE]


def plug_twenty(faults: Faults) -> list[str]:
    """Six sticks and two hubs with seven keyboards each; gives their bus ids."""
    backend = faults.backend
    backend.unplug_all()
    for port in "123456":
        backend.plug_storage(f"stick{port}", 256 << 10, port=port)
    for hub in "78":
        backend.plug_hub(f"hub{hub}", port=hub)
        for port in "1234567":
            backend.plug_keyboard(f"keyboard{hub}{port}", port=f"{hub}.{port}")
    usable = (
        "for d in /sys/bus/usb/devices/*-*; do case $d in *:*) continue; esac;"
        " [ $(cat $d/bDeviceClass) = 09 ] || ! test -e $d/driver || echo ${d##*/}; done"
    )
    backend.wait_for(f"[ $({usable} | wc -l) = 20 ]", 120)
    backend.wait_for("udevadm settle")
    return backend.run(usable).text.split()


@each([TWENTY])
def test_twenty_at_once(faults: Faults, case: Case) -> None:
    devices = plug_twenty(faults)
    assert len(devices) == 20
    try:
        calls = {device: faults.start_attach(device) for device in devices}
        results = {device: call.wait(300) for device, call in calls.items()}
    finally:
        for device in devices:
            faults.allowed_no_more(device)
    for done in results.values():
        if done.code:
            said_well(case, done)
    attached = [device for device, done in results.items() if done.code == 0]
    assert len(attached) == SLOTS, Counter(done.stderr for done in results.values())
    refused = (set(devices) - set(attached)).pop()
    # QubesDB hears of it after the kernels have it; dom0 waits for that, too.
    keys = (f"/qubes-usb-devices/{name.replace('.', '_')}/connected-to" for name in attached)
    of_work = " && ".join(f'[ "$(qubesdb-read {key})" = work ]' for key in keys)
    faults.backend.wait_for(of_work)
    # Whoever is refused gets a place when one is free.
    assert faults.detach(attached[0]).code == 0
    assert faults.attach(refused).code == 0
    ends = [faults.start_detach(device, FRONTEND) for device in (*attached[1:], refused)]
    assert {end.wait(120).code for end in ends} == {0}
    assert faults.await_clean() == []
    faults.backend.unplug_all()
    faults.backend.wait_for("! ls /sys/bus/usb/devices | grep -v usb | grep -v :")
    faults.check(case, None)


@each([TWO])
def test_two_frontends(faults: Faults, case: Case) -> None:
    stick = faults.stick()
    other = faults.lab.start_frontend("other")
    try:
        guests = (faults.frontend, other)
        for guest in guests:
            faults.lab.allow("qubes.USB", stick, guest, faults.backend)
        request = f"sys-usb {stick}\n".encode()
        calls = [faults.lab.start_call(guest, "qubes.USBAttach", request) for guest in guests]
        results = [call.wait(120) for call in calls]
        for guest in guests:
            faults.lab.revoke("qubes.USB", stick, guest, faults.backend)
        assert sorted(done.code != 0 for done in results) == [False, True]
        winner, loser = sorted(zip(guests, results, strict=True), key=lambda one: one[1].code)
        assert faults.connected_to(stick) == winner[0].name.encode()
        # No qube is told who has the device.
        assert winner[0].name not in loser[1].stderr.decode()
        done = faults.lab.call(winner[0], "qubes.USBDetach", request)
        assert (done.code, done.stderr) == (0, b"")
        other.wait_for(f"! find {LOCKS} {RECORDS} ! -type d | grep . && ! pgrep -f '[u]sb-import'")
    finally:
        other.kill()
    faults.check(case, loser[1])


@each([AGAIN])
def test_attached_already(faults: Faults, case: Case) -> None:
    stick = faults.stick()
    assert faults.attach(stick).code == 0
    done = faults.attach(stick)
    faults.check_attached(stick)
    assert faults.take_back(stick).code == 0
    faults.check(case, done)


def end_well(done: Completed) -> None:
    """A detach that met an attach: it did what it was told, or says that there is nothing to do."""
    said_well(Case("races", "the detach", told=NOT_ATTACHED, may_succeed=True), done)


@each(DURING_ATTACH)
def test_detach_during_attach(faults: Faults, case: Case) -> None:
    """The detach makes the stopped process go on, if that holds a lock by then."""
    stick = faults.stick()
    with faults.standing(case, stick, "STOP") as (call, resume):
        end_well(faults.start_detach(stick, case.data["side"]).wait(120))
        resume()
        done = call.wait(120)
    faults.check(case, done)


@each(DURING_DETACH)
def test_attach_during_detach(faults: Faults, case: Case) -> None:
    stick = faults.stick()
    with faults.standing(case, stick) as (end, resume):
        call = faults.start_attach(stick)
        time.sleep(1)
        resume()
        end_well(end.wait(120))
        done = call.wait(120)
    faults.check(case, done)


@each(TWICE)
def test_detach_twice(faults: Faults, case: Case) -> None:
    stick = faults.stick()
    assert faults.attach(stick).code == 0
    assert faults.start_detach(stick, case.data["side"]).wait(60).code == 0
    done = faults.start_detach(stick, case.data["side"]).wait(60)
    assert done.code == 5
    faults.check(case, done)


@each([TOGETHER])
def test_detach_in_both_qubes(faults: Faults, case: Case) -> None:
    stick = faults.stick()
    assert faults.attach(stick).code == 0
    calls = [faults.start_detach(stick, side) for side in (BACKEND, FRONTEND) * 2]
    results = [call.wait(60) for call in calls]
    assert 0 in {done.code for done in results}
    for done in results:
        said_well(case, done)
    faults.check(case, None)


@each(CYCLES)
def test_cycles(faults: Faults, case: Case) -> None:
    stick = faults.stick()
    for number in range(int(case.data["count"])):
        for act in (faults.attach, faults.take_back if number % 2 else faults.detach):
            done = act(stick)
            assert (done.code, done.stderr) == (0, b""), f"{act.__name__}, cycle {number}"
    faults.check(case, None)


@each(STALE)
def test_stale_note(faults: Faults, case: Case) -> None:
    """Such as two backends give: both may number their devices alike."""
    stick = faults.stick()
    assert faults.attach(stick).code == 0
    port = faults.frontend.read(f"{RECORDS}/usb-import-sys-usb-{stick}.state").decode().strip()
    note = faults.frontend.read(f"{LOCKS}/import-sys-usb-{stick}.lock").decode().split()
    assert note[0] == port
    devid = note[1] if case.data["same"] else "131199"
    faults.frontend.write(f"{RECORDS}/usb-import-sys-usb-9-9.state", f"{port}\n")
    faults.frontend.write(f"{LOCKS}/import-sys-usb-9-9.lock", f"{port} {devid}")
    done = faults.detach("9-9")
    assert (done.code, done.stderr) == (0, b"")
    faults.check_attached(stick)
    assert faults.detach(stick).code == 0
    faults.check(case, None)
