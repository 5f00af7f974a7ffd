# SPDX-License-Identifier: GPL-2.0-or-later
"""`python3 -m tests.bench.inside.real TREE CASE...`: attach, detach and trouble on real qrexec.

Prints a JSON object: each case, and what was wrong with it. The cases whose names begin with
`as_` compare the stand-ins with the real ones.
"""

import contextlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.lab.router import Completed
from usb_proxy.qrexec import NORMAL_PRIORITY

from . import machine
from .busy import carriers
from .cases import STICKS, SUPER
from .platform import REFUSED_TARGET, Platform
from .qubes import BACKEND, CALL_SECONDS, FRONTEND, OTHER, Qubes

SERVICES = Path("/usr/local/etc/qubes-rpc")
CONFIGURATIONS = Path("/usr/local/etc/qubes/rpc-config")
SCAN_SECONDS = 0.8
"""usb-storage scans a second after it was bound; something is under way then."""

REATTACHES = 10
MOMENTS = (0.05, 0.18, 0.3, 0.42)

Case = Callable[[Qubes], None]


def done(qubes: Qubes, name: str, service: str, request: str) -> Completed:
    """Call a service of a qube from dom0."""
    return qubes.start(name, service, request).wait(CALL_SECONDS)


def attach(qubes: Qubes, name: str = FRONTEND, backend: str = BACKEND) -> Completed:
    """Ask a qube to attach the stick."""
    return done(qubes, name, "qubes.USBAttach", f"{backend} {SUPER}")


def expect(condition: bool, what: str) -> None:
    """A case has failed unless `condition`."""
    if not condition:
        raise AssertionError(what)


def is_clean(qubes: Qubes) -> None:
    """Nothing is left of any attachment, and the stick is the backend's."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if (
            not qubes.processes()
            and not qubes.is_published()
            and machine.ports_are_free()
            and machine.has_driver(SUPER)
            and not qubes.records()
        ):
            return
        time.sleep(0.1)
    left = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in qubes.processes()]
    raise AssertionError(
        f"left: processes {left}, published {qubes.is_published()}, records {qubes.records()}, "
        f"ports free {machine.ports_are_free()}, driver {machine.has_driver(SUPER)}"
    )


def begin(qubes: Qubes, name: str = FRONTEND) -> None:
    """Attach the stick, and read from it."""
    answer = attach(qubes, name)
    expect(answer.code == 0, f"attach: {answer}")
    machine.await_disks()
    expect(qubes.is_published(), "attached, but not published")
    with Path(f"/dev/{machine.disks()[0]}").open("rb") as disk:
        expect(disk.read(65536) == bytes(65536), "what is read is not what is there")


def pids(qubes: Qubes, name: str, *words: str) -> list[int]:
    """The processes of a qube with all these words in their command lines."""
    space = os.readlink(f"/proc/{qubes.pid(name)}/ns/mnt")
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{entry}/cmdline").read_bytes()
            same = os.readlink(f"/proc/{entry}/ns/mnt") == space
            if same and all(word.encode() in line for word in words):
                found.append(int(entry))
    return found


def kill(qubes: Qubes, name: str, *words: str) -> None:
    """SIGKILL to the one process with these words that is deepest."""
    found = pids(qubes, name, *words)
    expect(bool(found), f"no process with {words} in {name}")
    os.kill(found[-1], signal.SIGKILL)


def answer_of(answer: Completed, code: int, *texts: str) -> None:
    """A failure must have this code and all these texts."""
    said = answer.stderr.decode(errors="replace")
    expect(answer.code == code, f"code {answer.code}, not {code}: {said}")
    for text in texts:
        expect(text in said, f"no {text} in {said!r}")


def detach_in_the_frontend(qubes: Qubes) -> None:
    """As dom0 does when a user asks for it."""
    begin(qubes)
    answer = done(qubes, FRONTEND, "qubes.USBDetach", f"{BACKEND} {SUPER}")
    expect(answer.code == 0, str(answer))
    is_clean(qubes)


def detach_in_the_backend(qubes: Qubes) -> None:
    """As dom0 does where the frontend does not answer."""
    begin(qubes)
    answer = done(qubes, BACKEND, "qubes.USBDetach", SUPER)
    expect(answer.code == 0, str(answer))
    is_clean(qubes)


def attach_at_once_after_the_backend_detached(qubes: Qubes) -> None:
    """The frontend's kernel may have a transfer under way that nobody answers any more."""
    for number in range(REATTACHES):
        answer = attach(qubes)
        expect(answer.code == 0, f"attach {number}: {answer}")
        time.sleep(SCAN_SECONDS)
        answer = done(qubes, BACKEND, "qubes.USBDetach", SUPER)
        expect(answer.code == 0, f"detach {number}: {answer}")
    begin(qubes)
    detached(qubes)


def detached(qubes: Qubes) -> None:
    """Detach in the frontend, and see that nothing is left."""
    done(qubes, FRONTEND, "qubes.USBDetach", f"{BACKEND} {SUPER}")
    is_clean(qubes)


def exporter_killed(qubes: Qubes) -> None:
    """The backend's program."""
    begin(qubes)
    kill(qubes, BACKEND, "launch", "usb-export")
    is_clean(qubes)


def importer_killed(qubes: Qubes) -> None:
    """The frontend's program."""
    begin(qubes)
    kill(qubes, FRONTEND, "launch", "usb-import")
    is_clean(qubes)


def client_killed(qubes: Qubes) -> None:
    """The frontend's half of the connection."""
    begin(qubes)
    kill(qubes, FRONTEND, "qrexec-client-vm")
    is_clean(qubes)


def agent_of_the_connection_killed(qubes: Qubes) -> None:
    """The backend's half of the connection: the agent's process that is the exporter's ancestor."""
    begin(qubes)
    (exporter,) = pids(qubes, BACKEND, "launch", "usb-export")
    environment = Path(f"/proc/{exporter}/environ").read_bytes().split(b"\0")
    (agent,) = (int(e[17:]) for e in environment if e.startswith(b"QREXEC_AGENT_PID="))
    os.kill(agent, signal.SIGKILL)
    is_clean(qubes)


def call_of_dom0_killed(qubes: Qubes) -> None:
    """At several moments of an attach."""
    assert isinstance(qubes, Platform)
    for moment in MOMENTS:
        call = qubes.start(FRONTEND, "qubes.USBAttach", f"{BACKEND} {SUPER}")
        time.sleep(moment)
        call.process.kill()
        call.process.communicate()
        settled(qubes)


def settled(qubes: Qubes) -> None:
    """Whatever was under way has ended: attached or not, then detached."""
    time.sleep(2)
    detached(qubes)


def importer_killed_during_an_attach(qubes: Qubes) -> None:
    """At several moments, by its name."""
    for moment in MOMENTS:
        call = qubes.start(FRONTEND, "qubes.USBAttach", f"{BACKEND} {SUPER}")
        time.sleep(moment)
        for pid in pids(qubes, FRONTEND, "launch", "usb-import"):
            os.kill(pid, signal.SIGKILL)
        answer = call.wait(CALL_SECONDS)
        expect(answer.code == 0 or b"[UP-" in answer.stderr, f"at {moment}: {answer}")
        settled(qubes)


def detach_during_an_attach(qubes: Qubes) -> None:
    """From either side, at several moments."""
    for name, request in ((FRONTEND, f"{BACKEND} {SUPER}"), (BACKEND, SUPER)):
        for moment in MOMENTS:
            call = qubes.start(FRONTEND, "qubes.USBAttach", f"{BACKEND} {SUPER}")
            time.sleep(moment)
            done(qubes, name, "qubes.USBDetach", request)
            answer = call.wait(CALL_SECONDS)
            expect(answer.code == 0 or b"[UP-" in answer.stderr, f"at {moment}: {answer}")
            settled(qubes)


def attach_during_a_detach(qubes: Qubes) -> None:
    """The one that comes second waits for the first, or is told why not."""
    for name, request in ((FRONTEND, f"{BACKEND} {SUPER}"), (BACKEND, SUPER)):
        begin(qubes)
        call = qubes.start(name, "qubes.USBDetach", request)
        time.sleep(0.05)
        answer = attach(qubes)
        expect(answer.code == 0 or b"[UP-" in answer.stderr, str(answer))
        expect(call.wait(CALL_SECONDS).code == 0, "detach failed")
        settled(qubes)


def two_qubes_at_once(qubes: Qubes) -> None:
    """Exactly one of them gets it."""
    calls = [
        qubes.start(name, "qubes.USBAttach", f"{BACKEND} {SUPER}") for name in (FRONTEND, OTHER)
    ]
    codes = [call.wait(CALL_SECONDS).code for call in calls]
    expect(codes.count(0) == 1, f"codes {codes}")
    for name in (FRONTEND, OTHER):
        done(qubes, name, "qubes.USBDetach", f"{BACKEND} {SUPER}")
    is_clean(qubes)


def service(name: str, text: str | None, mode: int = 0o755) -> None:
    """Put a service before the package's; None takes it out."""
    path = SERVICES / name
    if text is None:
        path.unlink()
        return
    path.write_text(text)
    path.chmod(mode)


def a_backend_that_lies(qubes: Qubes) -> None:
    """Each lie is one sentence, and nothing is left."""
    try:
        for lie in (
            "echo nonsense",
            "printf '%65536s' x",
            "printf '5-65538\\n'; sleep 60",
            "echo 65538 5; exit 0",
            "echo 99999999999 5; sleep 1",
            "kill -9 $$",
            "exec </dev/null >/dev/null; sleep 1; echo 65538 5 >&0",
        ):
            service("qubes.USB", f"#!/bin/sh\n{lie}\n")
            answer = attach(qubes)
            expect(answer.code > 0, f"{lie}: attached")
            expect(answer.stderr.count(b"[UP-") >= 1, f"{lie}: {answer}")
            expect(not qubes.records(), f"{lie}: a record is left")
    finally:
        service("qubes.USB", None)
    is_clean(qubes)


def a_frontend_that_lies(qubes: Qubes) -> None:
    """The device is given back, whatever the caller sends or does not."""
    try:
        for lie in ("echo nonsense", "cat >/dev/null", "yes | head -c 300000", "kill -9 $PPID"):
            command = f"exec qrexec-client-vm {BACKEND} qubes.USB+{SUPER} /bin/sh -c '{lie}'"
            service("real.Lie", f"#!/bin/sh\n{command}\n")
            call = qubes.start(FRONTEND, "real.Lie", "")
            time.sleep(3)
            for pid in pids(qubes, FRONTEND, "qrexec-client-vm"):
                os.kill(pid, signal.SIGKILL)
            call.wait(CALL_SECONDS)
            is_clean(qubes)
    finally:
        service("real.Lie", None)


def refused_by_policy(qubes: Qubes) -> None:
    """The sentence names policy."""
    answer_of(attach(qubes, backend=REFUSED_TARGET), 6, "policy", "[UP-607]")


def backend_that_does_not_run(qubes: Qubes) -> None:
    """Some sentence; qrexec-client-vm tells it as it tells a refusal."""
    answer_of(attach(qubes, backend="halted"), 6, "[UP-")


def unplugged(qubes: Qubes) -> None:
    """While it is attached."""
    begin(qubes)
    machine.unplug(SUPER, STICKS[SUPER])
    machine.await_free_ports()
    end = time.monotonic() + 20
    while (qubes.is_published() or qubes.processes()) and time.monotonic() < end:
        time.sleep(0.1)
    expect(not qubes.is_published(), "still published")
    machine.plug(SUPER, STICKS[SUPER])
    is_clean(qubes)


def only_the_carriers_are_preferred(qubes: Qubes) -> None:
    """Of all processes of all qubes; a service that is started meanwhile is as any other."""
    flag = qubes.root(FRONTEND) / NORMAL_PRIORITY.lstrip("/")
    service("real.Nice", "#!/bin/sh\nnice\n")
    for is_off in (False, True):
        if is_off:
            flag.parent.mkdir()
            flag.touch()
        begin(qubes)
        preferred = {
            pid
            for name in qubes.names()
            for pid in pids(qubes, name)
            if os.getpriority(os.PRIO_PROCESS, pid) != 0
        }
        wanted = carriers(qubes) - set(pids(qubes, FRONTEND) if is_off else ())
        expect(preferred == wanted and len(wanted) == 2 - is_off, f"{preferred}, not {wanted}")
        for name in (BACKEND, FRONTEND):
            expect(done(qubes, name, "real.Nice", "").stdout == b"0\n", f"a service of {name}")
        detached(qubes)
    flag.unlink()
    service("real.Nice", None)


CASES: tuple[Case, ...] = (
    only_the_carriers_are_preferred,
    detach_in_the_frontend,
    detach_in_the_backend,
    attach_at_once_after_the_backend_detached,
    exporter_killed,
    importer_killed,
    client_killed,
    agent_of_the_connection_killed,
    call_of_dom0_killed,
    importer_killed_during_an_attach,
    detach_during_an_attach,
    attach_during_a_detach,
    two_qubes_at_once,
    a_backend_that_lies,
    a_frontend_that_lies,
    refused_by_policy,
    backend_that_does_not_run,
    unplugged,
)


def main(arguments: list[str]) -> int:
    """Run some cases, all if none is named."""
    machine.load_modules()
    SERVICES.mkdir(parents=True, exist_ok=True)
    CONFIGURATIONS.mkdir(parents=True, exist_ok=True)
    qubes = Platform(Path(arguments[1]))
    machine.plug(SUPER, STICKS[SUPER])
    found = {}
    for case in CASES:
        if arguments[2:] and case.__name__ not in arguments[2:]:
            continue
        machine.ask(f"say {case.__name__}")
        try:
            case(qubes)
            found[case.__name__] = ""
        except Exception:
            found[case.__name__] = traceback.format_exc()
            with contextlib.suppress(Exception):
                settled(qubes)
    json.dump(found, sys.stdout)
    qubes.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
