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
    """A program's part of a journey."""

    who: str
    guest: str
    program: str
    journey: str
    """`attach`, `detach` (from either side in turn), `detach in GUEST`, or `repair`."""
    recording: str
    announced: str = ""
    """What dom0 tells that the device is; or it does not tell."""

    @property
    def steps(self) -> tuple[str, ...]:
        """Those that change something or wait."""
        return steps.changes(steps.ALL[self.recording])


PARTS = (
    Part("the exporter", BACKEND, "usb-export", "attach", "usb-export"),
    Part("the importer", FRONTEND, "usb-import", "attach", "usb-import"),
    Part("the attach service", FRONTEND, "usb-attach", "attach", "usb-attach"),
    Part("the exporter", BACKEND, "usb-export", "detach", "usb-export, its end"),
    Part("the importer", FRONTEND, "usb-import", "detach", "usb-import, its end"),
    Part("the detach service", FRONTEND, "usb-detach", "detach in work", "usb-detach in work"),
    Part("the detach service", BACKEND, "usb-detach", "detach in sys-usb", "usb-detach in sys-usb"),
    Part("the repair", BACKEND, "usb-repair", "repair", "usb-repair in sys-usb"),
    Part("the repair", FRONTEND, "usb-repair", "repair", "usb-repair in work"),
)
ANNOUNCED = "46f4:0001 080650"
"""The stick."""
JUDGE, JUDGES = "the importer that judges", "usb-import that judges"
AFTER_IT, REPAIRS = "the repair after one that judges", "usb-repair after one that judges"
JUDGING = (
    Part(JUDGE, FRONTEND, "usb-import", "attach", JUDGES, ANNOUNCED),
    Part(JUDGE, FRONTEND, "usb-import", "detach", f"{JUDGES}, its end", ANNOUNCED),
    Part(AFTER_IT, FRONTEND, "usb-repair", "repair", REPAIRS, ANNOUNCED),
)
"""An attach of which dom0 told what the device is."""

SHORT_DEATHS = (
    ("KILL", "gates.claim write"),
    ("KILL", "gates.claim write interface_authorized_default"),
    ("KILL", "sysfs.UsbDevice.write write authorized"),
    ("KILL with its shell", "gates.authorize write drivers_probe"),
    ("KILL", "gates.withdraw write interface_authorized_default"),
)
"""The judge's, of which `make check` has one each."""

NAMES = {
    "KILL": "SIGKILL to {who}",
    "TERM": "SIGTERM to {who}",
    "KILL with its shell": "SIGKILL to {who} and its guardian",
    "KILL its agent": "SIGKILL to the agent of {who}",
}
HANDED_OVER = "qubesdb.publish posix_spawn qubesdb-write"
"""From here on the exporter has given the device away."""
REPORTED = "usb_import.Report.send write"
LAST_WAIT = "enumeration.Enumeration.await_usable poll"
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
    (BACKEND, "usb-export", "attach", "usbip_host.take write bind"),
    (BACKEND, "usb-export", "attach", "usb_export.main lstat usb-reset-on-attach"),
    (BACKEND, "usb-export", "attach", HANDED_OVER),
    (BACKEND, "usb-export", "attach", steps.SLEEPS),
    (BACKEND, "usb-export", "detach in work", "qrexec.Link.end shutdown"),
    (FRONTEND, "usb-import", "attach", "qrexec.Link.read_line poll"),
    (FRONTEND, "usb-import", "attach", "vhci.attach write attach"),
    (FRONTEND, "usb-import", "attach", "records.write rename"),
    (FRONTEND, "usb-import", "attach", steps.SLEEPS),
    (FRONTEND, "usb-import", "detach in sys-usb", "qrexec.Link.end poll"),
)
QUBE_CASES = [
    Case(
        "death",
        f"the {'backend' if guest == BACKEND else 'frontend'} qube is killed ({journey})",
        f"{program}: {step}",
        ATTACHING if journey == "attach" else "^usb-detach: ",
        may_succeed=step in (HANDED_OVER, steps.SLEEPS) or journey != "attach",
        mute=(guest, journey) in ((FRONTEND, "attach"), (BACKEND, "detach in sys-usb")),
        short=step == steps.SLEEPS,
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
    """`make steps` records a new step of the product, which gets its faults by that."""
    device = faults.stick()
    assert faults.attach(device).code == 0  # The drivers are loaded now.
    assert faults.detach(device).code == 0
    assert faults.await_clean() == []

    def there_and_back(detach: Callable[[str], Completed]) -> None:
        assert [done.code for done in (faults.attach(device), detach(device))] == [0, 0]

    for detach, side in ((faults.detach, FRONTEND), (faults.take_back, BACKEND)):
        seen = faults.record(partial(there_and_back, detach))
        assert len(seen) == 4
        steps.agree(
            {
                "usb-attach": seen[FRONTEND, "usb-attach"],
                **steps.halves("usb-export", seen[BACKEND, "usb-export"]),
                **steps.halves("usb-import", seen[FRONTEND, "usb-import"]),
                f"usb-detach in {side}": seen[side, "usb-detach"],
            }
        )
    for guest, program in ((faults.backend, "usb-export"), (faults.frontend, "usb-import")):
        assert faults.attach(device).code == 0
        seen = faults.record(partial(guest.run, f"pkill -KILL -f '[l]aunch {program}'"))
        steps.agree({f"usb-repair in {guest.name}": seen[guest.name, "usb-repair"]})


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
    steps.agree(steps.halves("usb-import that judges", seen[FRONTEND, "usb-import"]))
    assert faults.attach(device, ANNOUNCED).code == 0
    seen = faults.record(partial(faults.frontend.run, "pkill -KILL -f '[l]aunch usb-import'"))
    steps.agree({"usb-repair after one that judges": seen[FRONTEND, "usb-repair"]})
