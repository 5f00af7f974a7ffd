# SPDX-License-Identifier: GPL-2.0-or-later
"""Family 1: every process that takes part dies, at every step of an attach and of a detach."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import pytest

from tests.lab.router import Completed

from . import steps
from .conftest import Faults, said_well
from .table import After, Case, each

ATTACHING = r"^usb-attach: \S+ of sys-usb is not attached: "
BACKEND, FRONTEND = "sys-usb", "work"


class Part(NamedTuple):
    """A program's part of a journey, with the steps of it that change something or wait."""

    who: str
    guest: str
    program: str
    journey: str
    """`attach`, `detach` (from either side in turn), `detach in GUEST`, or `repair`."""
    steps: tuple[str, ...]
    announced: str = ""
    """What dom0 tells that the device is; or it does not tell."""


PARTS = (
    Part("the exporter", BACKEND, "usb-export", "attach", steps.changes(steps.EXPORT)),
    Part("the importer", FRONTEND, "usb-import", "attach", steps.changes(steps.IMPORT)),
    Part("the attach service", FRONTEND, "usb-attach", "attach", steps.changes(steps.ATTACH)),
    Part("the exporter", BACKEND, "usb-export", "detach", steps.changes(steps.EXPORT_END)),
    Part("the importer", FRONTEND, "usb-import", "detach", steps.changes(steps.IMPORT_END)),
    Part(
        "the detach service",
        FRONTEND,
        "usb-detach",
        "detach in work",
        steps.changes(steps.DETACH_IN_FRONTEND),
    ),
    Part(
        "the detach service",
        BACKEND,
        "usb-detach",
        "detach in sys-usb",
        steps.changes(steps.DETACH_IN_BACKEND),
    ),
    Part("the repair", BACKEND, "usb-repair", "repair", steps.changes(steps.REPAIR_IN_BACKEND)),
    Part("the repair", FRONTEND, "usb-repair", "repair", steps.changes(steps.REPAIR_IN_FRONTEND)),
)
ANNOUNCED = "46f4:0001 080650"
"""The stick."""
JUDGE = "the importer that judges"
JUDGING = (
    Part(JUDGE, FRONTEND, "usb-import", "attach", steps.changes(steps.IMPORT_ANNOUNCED), ANNOUNCED),
    Part(
        JUDGE,
        FRONTEND,
        "usb-import",
        "detach",
        steps.changes(steps.IMPORT_ANNOUNCED_END),
        ANNOUNCED,
    ),
    Part(
        "the repair after one that judges",
        FRONTEND,
        "usb-repair",
        "repair",
        steps.changes(steps.REPAIR_ANNOUNCED),
        ANNOUNCED,
    ),
)
"""An attach of which dom0 told what the device is."""

SHORT_DEATHS = (
    ("KILL", "gates._write write"),
    ("KILL", "gates._close write interface_authorized_default"),
    ("KILL", "sysfs.UsbDevice.write write authorized"),
    ("KILL with its shell", "gates.authorize write drivers_probe"),
    ("KILL", "gates._switch_on write interface_authorized_default"),
)
"""The judge's, of which `make check` has one each."""

NAMES = {
    "KILL": "SIGKILL to {who}",
    "TERM": "SIGTERM to {who}",
    "KILL with its shell": "SIGKILL to {who} and its guardian",
    "KILL its agent": "SIGKILL to the agent of {who}",
}
HANDED_OVER = "qubesdb._write posix_spawn qubesdb-write"
"""From here on the exporter has given the device away."""
REPORTED = "usb_import.Report.send write"
LAST_WAIT = "enumeration.Enumeration._news poll"
"""From here on the importer may not notice the connection's end before it has reported."""
SIGNALLED = "locks.Lock.stop_holder pidfd_send_signal"


def promise(part: Part, action: str, index: int) -> Case:
    """What has to hold when `action` befalls a program at the step of this index."""
    step = part.steps[index]
    journey = part.journey
    if journey == "detach":
        # The one signal while work detaches, the other while sys-usb does.
        journey = f"detach in {(BACKEND, FRONTEND)[(index + len(action)) % 2]}"
    told, mute, after, left_in, may_succeed = "", False, After.AT_ONCE, "", True
    if part.program in ("usb-attach", "usb-detach"):
        mute = action != "TERM"
        told = rf"^{part.program}: stopped by a signal before it was done; try again \[UP-801\]$"
        early = part.program == "usb-attach" or index <= part.steps.index(SIGNALLED)
        if mute or part.program == "usb-detach":
            after = After.EITHER if early or mute else After.AT_ONCE
        if action == "KILL" and not early:
            after, left_in = After.NEXT_COMMAND, part.guest
    elif journey == "attach":
        told = ATTACHING
        last = REPORTED if part.program == "usb-import" else HANDED_OVER
        if part.program == "usb-import" and action == "KILL its agent":
            last = LAST_WAIT
        may_succeed = index >= part.steps.index(last) or action == "TERM"
    elif journey != "repair":
        told = "^usb-detach: "
    if action == "KILL with its shell" or (part.program == "usb-repair" and action == "KILL"):
        after, left_in = After.NEXT_COMMAND, part.guest
    data = {"guest": part.guest, "program": part.program, "journey": journey, "action": action}
    data["announced"] = part.announced
    return Case(
        "death",
        NAMES[action].format(who=f"{part.who} ({journey})"),
        f"{part.program}: {step}",
        told,
        may_succeed,
        mute,
        after,
        left_in,
        short=part.who == JUDGE and (action, step) in SHORT_DEATHS,
        data=data | {"step": step},
    )


def cases_of(part: Part) -> Iterator[Case]:
    """Every fault at every step of a part."""
    actions = ["KILL", "TERM"]
    if part.program in ("usb-export", "usb-import"):
        actions += ["KILL with its shell", "KILL its agent"]
    elif part.program != "usb-repair":
        actions += ["KILL its agent"]
    for action in actions:
        for index in range(len(part.steps)):
            yield promise(part, action, index)


def befall(faults: Faults, case: Case, device: str) -> Completed | None:
    """Let it happen: what became of the command that was under way."""
    data = case.data
    guest, journey = faults.guest(data["guest"]), data["journey"]
    faults.arm(guest, data["program"], data["step"], data["action"])
    if journey != "attach":
        done = faults.attach(device, data.get("announced"))
        assert (done.code, done.stderr) == (0, b"")
    result: Completed | None = None
    if journey == "attach":
        result = faults.attach(device, data.get("announced"))
    elif journey == "detach in work":
        result = faults.detach(device)
    elif journey == "detach in sys-usb":
        result = faults.take_back(device)
        if result.code == 0:
            assert (faults.driver(device), faults.connected_to(device)) == ("usb", None)
    else:
        program = "usb-export" if guest is faults.backend else "usb-import"
        guest.run(f"pkill -KILL -f '[l]aunch {program}'")
    assert faults.await_fired(guest)[1] == case.point
    return result


CASES = [case for part in (*PARTS, *JUDGING) for case in cases_of(part)]


@each(CASES)
def test_death(faults: Faults, case: Case) -> None:
    faults.check(case, befall(faults, case, faults.stick()))


THE_NEXT_TOO = Case(
    "death",
    "SIGKILL to the exporter and its guardian, then to the agent of the next exporter",
    "usb-export: locks.Lock.acquire lockf",
    ATTACHING,
    data={
        "guest": BACKEND,
        "program": "usb-export",
        "journey": "attach",
        "action": "KILL its agent",
        "step": "locks.Lock.acquire lockf",
    },
)
CASES += [THE_NEXT_TOO]


@each([THE_NEXT_TOO])
def test_the_next_dies_too(faults: Faults, case: Case) -> None:
    """The next command cleans up, also if it fails itself."""
    device = faults.stick()
    assert faults.attach(device).code == 0
    faults.backend.run("pkill -KILL -f '[u]sb-export'")
    faults.check(case, befall(faults, case, device))


def walk(part: Part) -> list[Case]:
    """Each step of a part once, with one of its faults in turn that needs no command to repair."""
    chosen = []
    found = [case for case in cases_of(part) if case.after is not After.NEXT_COMMAND]
    for index, step in enumerate(part.steps):
        here = [case for case in found if case.data["step"] == step]
        chosen.append(here[index % len(here)])
    return chosen


SHORT_WALKS = (("the exporter", "attach"), ("the importer", "attach"), ("the importer", "detach"))
WALKS = {
    Case(
        "death",
        f"one of these at every step of {part.who}, {part.journey}",
        f"{part.program} in {part.guest}",
        "each time as in the case of its own",
        short=(part.who, part.journey) in SHORT_WALKS,
    ): walk(part)
    for part in (*PARTS, *JUDGING)
}
CASES += WALKS


@each(WALKS)
def test_death_at_every_step(faults: Faults, case: Case) -> None:
    device = faults.stick()
    for one in WALKS[case]:
        print(one)
        done = befall(faults, one, device)
        if done is not None:
            said_well(one, done)
        faults.check_settled(one)
    faults.attach_and_detach(device)
    assert faults.complaints() == []


# Whole machines, which take a while to boot: where what the other one has to clean up differs.

QUBES = (
    (BACKEND, "usb-export", "attach", "usbip_host._take write bind"),
    (BACKEND, "usb-export", "attach", "usb_export._Loan._prepare lstat usb-reset-on-attach"),
    (BACKEND, "usb-export", "attach", HANDED_OVER),
    (BACKEND, "usb-export", "attach", "qrexec.Link.await_end poll"),
    (BACKEND, "usb-export", "detach in work", "qrexec.Link.end shutdown"),
    (FRONTEND, "usb-import", "attach", "qrexec.Link.read_line poll"),
    (FRONTEND, "usb-import", "attach", "vhci._try_attach write attach"),
    (FRONTEND, "usb-import", "attach", "records.write rename"),
    (FRONTEND, "usb-import", "attach", "qrexec.Link.await_end poll"),
    (FRONTEND, "usb-import", "detach in sys-usb", "qrexec.Link.end poll"),
)
QUBE_CASES = [
    Case(
        "death",
        f"the {'backend' if guest == BACKEND else 'frontend'} qube is killed ({journey})",
        f"{program}: {step}",
        ATTACHING if journey == "attach" else "^usb-detach: ",
        may_succeed=step in (HANDED_OVER, "qrexec.Link.await_end poll") or journey != "attach",
        mute=(guest, journey) in ((FRONTEND, "attach"), (BACKEND, "detach in sys-usb")),
        short=step.startswith("qrexec.Link.await_end"),
        data={"guest": guest, "program": program, "journey": journey, "step": step},
    )
    for guest, program, journey, step in QUBES
]
CASES += QUBE_CASES


@each(QUBE_CASES)
def test_a_qube_is_killed(faults: Faults, case: Case) -> None:
    guest = faults.guest(case.data["guest"])
    with faults.standing(case, faults.stick()) as (call, _):
        guest.kill()
        done = call.wait(120)
    faults.restart(guest)
    faults.check(case, done)


DOM0 = {
    "the call of the service is lost": (*PARTS[:3], *PARTS[5:7]),
    "every connection is lost": (*PARTS[:2], *PARTS[3:5]),
}
DOM0_CASES = [
    Case(
        "death",
        f"dom0 is killed: {name} ({part.journey})",
        f"{part.program}: {step}",
        mute=True,
        after=After.EITHER,
        data={
            "guest": part.guest,
            "program": part.program,
            "journey": "detach in work" if part.journey == "detach" else part.journey,
            "step": step,
            "what": name,
        },
    )
    for name, parts in DOM0.items()
    for part in parts
    for step in part.steps
]
CASES += DOM0_CASES


@each(DOM0_CASES)
def test_dom0_is_killed(faults: Faults, case: Case) -> None:
    with faults.standing(case, faults.stick()) as (call, resume):
        if case.data["what"].startswith("the call"):
            call.cancel()
        else:
            faults.lab.lose_connections()
    resume()
    faults.check(case, call.wait(60))


def test_the_shell_is_the_guardian(faults: Faults) -> None:
    """Without this the family would kill the wrong process with the exporter."""
    device = faults.stick()
    assert faults.attach(device).code == 0
    for guest, program in ((faults.backend, "usb-export"), (faults.frontend, "usb-import")):
        parent = guest.run(f"ps -o args= -p $(ps -o ppid= -p $(pgrep -f '[l]aunch {program}'))")
        assert parent.text.startswith(f"/bin/sh /usr/lib/qubes/{program} ")
    assert faults.detach(device).code == 0


@pytest.mark.short
def test_steps_are_those_of_a_recording(faults: Faults) -> None:
    """A new step of the product has to be added to `steps.py`, and gets its faults by that."""
    device = faults.stick()
    assert faults.attach(device).code == 0  # The drivers are loaded now.
    assert faults.detach(device).code == 0
    assert faults.await_clean() == []

    def there_and_back(detach: Callable[[str], Completed]) -> None:
        assert [done.code for done in (faults.attach(device), detach(device))] == [0, 0]

    frontend = faults.record(partial(there_and_back, faults.detach))
    backend = faults.record(partial(there_and_back, faults.take_back))
    export = steps.EXPORT + steps.EXPORT_END
    importing = steps.IMPORT + steps.IMPORT_END
    assert frontend == {
        (FRONTEND, "usb-attach"): steps.ATTACH,
        (BACKEND, "usb-export"): export,
        (FRONTEND, "usb-import"): importing,
        (FRONTEND, "usb-detach"): steps.DETACH_IN_FRONTEND,
    }
    assert backend == {
        (FRONTEND, "usb-attach"): steps.ATTACH,
        (BACKEND, "usb-export"): export,
        (FRONTEND, "usb-import"): importing,
        (BACKEND, "usb-detach"): steps.DETACH_IN_BACKEND,
    }
    for guest, program, known in (
        (faults.backend, "usb-export", steps.REPAIR_IN_BACKEND),
        (faults.frontend, "usb-import", steps.REPAIR_IN_FRONTEND),
    ):
        assert faults.attach(device).code == 0
        seen = faults.record(partial(guest.run, f"pkill -KILL -f '[l]aunch {program}'"))
        assert seen[guest.name, "usb-repair"] == known


@pytest.mark.short
def test_steps_of_the_judge_are_those_of_a_recording(faults: Faults) -> None:
    device = faults.stick()
    assert faults.told(device) == ANNOUNCED
    assert faults.attach(device, ANNOUNCED).code == 0
    assert faults.detach(device).code == 0
    assert faults.await_clean() == []

    def there_and_back() -> None:
        assert faults.attach(device, ANNOUNCED).code == 0
        assert faults.detach(device).code == 0

    seen = faults.record(there_and_back)
    assert seen[FRONTEND, "usb-import"] == steps.IMPORT_ANNOUNCED + steps.IMPORT_ANNOUNCED_END
    assert faults.attach(device, ANNOUNCED).code == 0
    seen = faults.record(partial(faults.frontend.run, "pkill -KILL -f '[l]aunch usb-import'"))
    assert seen[FRONTEND, "usb-repair"] == steps.REPAIR_ANNOUNCED
