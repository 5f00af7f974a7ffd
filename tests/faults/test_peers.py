# SPDX-License-Identifier: GPL-2.0-or-later
"""Peers that lie, stall, flood or leave, at either end of a connection."""

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.router import Completed

from .conftest import Faults, said_well
from .table import Case, each

PEER = Path(__file__).parent / "guest/peer.py"
RUN_PEER = "exec /run/peer.py"
SERVICES = "/usr/local/etc/qubes-rpc/qubes.USB"
THEN = "/run/peer-misbehaves"

ENDED = r"the qube with the controllers ended the connection while the device was set up"
SILENT = r"the device does not answer \(15 s\)"
GIVEN_UP = f"{ENDED}|{SILENT}"  # as the kernel has it, which asks again for some answers
NO_LINE = r"the qube with the controllers sent no answer in time"


def backend(name: str, script: str, told: str, short: bool = False) -> Case:
    """A backend that runs `script` instead of the service."""
    data = {"script": script}
    return Case("peers", f"backend: {name}", told=told, short=short, data=data)


# Unit tests of `make check` have all bad lines.
QUICK = (
    "closes",
    "2^32",
    "shell",
    "escape sequence",
    "leaves after the line",
    "garbage",
    "10 MB on stderr",
)

# The line that comes before the kernels talk, and what may be instead of it.
LINES = [
    backend(name, script, told, short=name in QUICK)
    for name, script, told in (
        ("closes", "exit 0", "controllers closed the connection without an answer"),
        ("half a line", "printf '131074 50'", "closed the connection in the middle of its answer"),
        ("silence", "exec sleep 90", NO_LINE),
        ("half a line, then silence", "printf 1310; sleep 90", "only part of an answer in time"),
        ("a byte a second", "while printf 1; do sleep 1; done", "only part of an answer in time"),
        ("no end", "head -c 9999 /dev/zero | tr '\\0' 1", "answer of .* is too long"),
        ("empty line", "echo; sleep 9", "'' is not 'DEVID SPEED'"),
        ("negative", "echo -1 480; sleep 9", "'-1 480' has no decimal device number"),
        ("2^32", "echo 4294967296 480; sleep 9", "has an impossible device number"),
        ("no device number", "echo 131072 480; sleep 9", "has an impossible device number"),
        ("unknown speed", "echo 131074 481; sleep 9", "'131074 481' has an unknown speed"),
        ("path", "echo 131074 ../../etc; sleep 9", "has an unknown speed"),
        ("shell", "echo '131074 $(reboot)'; sleep 9", "has an unknown speed"),
        ("not ASCII", "printf '131074 48\\303\\240\\n'; sleep 9", "is not 'DEVID SPEED'"),
        ("escape sequence", "printf '\\033[2J\\n'; sleep 9", r"'\[2J' is not"),
        ("silent device", "echo 131074 480; exec sleep 90", SILENT),
        ("leaves after the line", "echo 131074 5000", ENDED),
        ("garbage", "echo 131074 5000; yes garbage | head -c 4096; sleep 90", ENDED),
        (
            "10 MB on stderr",
            "yes nonsense | head -c 10000000 >&2; exit 1",
            "said on the way: nonsense nonsense",
        ),
        (
            "control characters on stderr",
            r"printf '\033]0;title\007\033[2J\r\n\tone\200\377\0two\177\n' >&2; exit 1",
            r"said on the way: \]0;title \[2J one two",
        ),
        (
            "stderr without an end",
            "echo 131074 480; exec sh -c 'exec <&- >&-; yes endless >&2'",
            "said on the way: endless endless|" + SILENT,
        ),
    )
]

# After a good line: what the frontend's kernel gets instead of a device.
ANSWERS = [
    backend(name, f"{RUN_PEER} backend {mode}", told, short)
    for name, mode, told, short in (
        ("an answer to what was not asked", "'another number'", ENDED, True),
        ("an answer of 2 GiB", "length 2147483647", GIVEN_UP, False),
        ("an answer of -1 bytes", "length -1", GIVEN_UP, False),
        ("an answer of 19 bytes where 18 fit", "length 65", GIVEN_UP, False),
        ("an error for everything", "status -71", GIVEN_UP, False),
        ("stalls for everything", "status -32", GIVEN_UP, False),
        ("zeros for descriptors", "zeros", GIVEN_UP, False),
        ("an unknown command", "command 9", ENDED, False),
        ("a request instead of an answer", "command 1", ENDED, False),
        ("an answer to no unlinking", "command 4", SILENT, False),
        ("half a header, then silence", "cut 20 silent", SILENT, True),
        ("half a header, then leaves", "cut 20 leaves", ENDED, False),
        ("a header without its data, then silence", "cut 50 silent", SILENT, False),
        ("a header without its data, then leaves", "cut 50 leaves", ENDED, False),
        ("a byte a second of a header", "slow", SILENT, False),
        ("closes one direction", "half-open", ENDED, False),
        *((f"leaves after {n} answers", f"leaves {n}", GIVEN_UP, False) for n in range(4)),
    )
]

BACKENDS = [*LINES, *ANSWERS]
SLOW = (SILENT, NO_LINE, GIVEN_UP)
AT_ONCE = 8

# A device that was good while it was attached.
LATER = [
    Case(
        "peers",
        f"backend: {what} once it is attached",
        short=what == "garbage",
        data={"kind": what, "stays": "yes" if what in ("silence", "half a header") else ""},
    )
    for what in ("garbage", "a flood", "half a header", "half-open", "silence", "the end")
]

DEAF = "asks and never reads"
# The exporter's kernel hears these; what is held until somebody ends it is taken back.
HELD = (
    "silence",
    "half a header",
    "data that do not come",
    "slow",
    DEAF,
    "takes back what it never asked",
    "a configuration that is not there",
    "an interface that is not there",
    "2^31 packets",  # which count for isochronous endpoints alone (stub_rx.c, get_pipe)
    "an endpoint that is not there",  # which is no reason to end a session (stub_recv_cmd_submit)
    "an endpoint above 15",
    "resets",
)
FRONTENDS = [
    Case(
        "peers",
        f"frontend: {mode}",
        short=mode in ("exits after the line", "garbage"),
        data={"mode": mode, "held": "yes" if mode in HELD else ""},
    )
    for mode in (
        "exits at once",
        "exits after the line",
        "closes without switching",
        "garbage",
        "wrong devid",
        "unknown command",
        "a reply instead of a request",
        "half a header, then leaves",
        "length of 2 GiB",
        "negative length",
        "a thousand requests, then leaves",
        "half-open",
        *HELD,
    )
]

GONE = Case(
    "peers",
    "backend: the service is not installed",
    told="closed the connection without an answer; make sure that qubes-usb-proxy is",
)
TOGETHER = Case("peers", "backends: all of these at once")
AT_ONCE_AFTER = [
    Case(
        "peers",
        f"backend: leaves after {answers} answers, and a device is attached at once, {hubs}",
        short=answers == 0,
        data={"answers": str(answers), "hubs": hubs},
    )
    for answers in (0, 1)
    for hubs in ("with hubs to spare", "with one hub")
]
CASES = [*BACKENDS, *LATER, *FRONTENDS, GONE, *AT_ONCE_AFTER]

Results = dict[Case, Completed]


@pytest.fixture(scope="module")
def told(faulty_lab: Faults, request: pytest.FixtureRequest) -> Iterator[Results]:
    """What each lying backend made the frontend say: those that run are called in turns.

    Many are called at once, the slow ones together, but no more than emulated guests can bear.
    """
    chosen: list[Case] = []
    for item in request.session.items:
        case = getattr(item, "callspec", None) and item.callspec.params.get("case")  # type: ignore[attr-defined]
        if case in BACKENDS and case not in chosen:
            chosen.append(case)
    chosen.sort(key=lambda case: (case.told in SLOW, case.name))
    faulty_lab.backend.push(PEER, "/run/peer.py")
    faulty_lab.frontend.run("modprobe vhci-hcd")  # That takes long while many want it at once.
    results: Results = {}
    while chosen:
        turn, chosen = chosen[:AT_ONCE], chosen[AT_ONCE:]
        calls = {}
        for number, case in enumerate(turn, 1):
            script = f"#!/bin/sh\n{case.data['script']}\n"
            faulty_lab.backend.write(f"{SERVICES}+9-{number}", script, 0o755)
            calls[case] = faulty_lab.start_attach(f"9-{number}")
        results |= {case: call.wait(150) for case, call in calls.items()}
        faulty_lab.backend.run("pkill sleep; pkill yes; pkill peer.py; true")
    yield results
    faulty_lab.backend.run(f"rm -f {SERVICES}+9-*")


@each(BACKENDS)
def test_lying_backends(faults: Faults, told: Results, case: Case) -> None:
    said_well(case, told[case])
    assert b"\033" not in told[case].stderr
    assert faults.await_clean() == []


def test_after_all_lying_backends(faults: Faults, told: Results) -> None:
    faults.check(TOGETHER, None)


@each(AT_ONCE_AFTER)
def test_an_attach_right_after_one_that_left(faults: Faults, case: Case) -> None:
    """The kernel waits 5 s for an answer of what has left, and then asks what is in its port."""
    stick = faults.stick()
    faults.backend.push(PEER, "/run/peer.py")
    script = f"#!/bin/sh\nSPEED=5000 {RUN_PEER} backend leaves {case.data['answers']}\n"
    faults.backend.write(f"{SERVICES}+9-1", script, 0o755)
    is_one = case.data["hubs"] == "with one hub"
    try:
        with faults.one_hub() if is_one else contextlib.nullcontext():
            left = faults.attach("9-1")
            assert b"ended the connection while the device was set up" in left.stderr
            done = faults.attach(stick)
            assert (done.code, done.stderr) == (0, b"")
            assert faults.detach(stick).code == 0
    finally:
        faults.backend.run(f"rm -f {SERVICES}+9-1")
    faults.check(case, None)


@each(LATER)
def test_backend_that_lies_later(faults: Faults, case: Case) -> None:
    faults.backend.push(PEER, "/run/peer.py")
    script = f"#!/bin/sh\n{RUN_PEER} backend attached '{case.data['kind']}'\n"
    faults.backend.write(f"{SERVICES}+9-1", script, 0o755)
    try:
        done = faults.attach("9-1")
        assert (done.code, done.stderr) == (0, b"")
        faults.backend.run(f"touch {THEN}")
        if case.data["stays"]:
            # Something for the kernel to wait for in vain.
            setting = "/sys/bus/usb/devices/*-1/bConfigurationValue"
            faults.frontend.run(f"(echo 0 > $(echo {setting})) >&- 2>&- &")
            done = faults.detach("9-1")
            assert (done.code, done.stderr) == (0, b"")
        here = "pgrep -f '[l]aunch usb-import' || ls /run/qubes/usb-import-*"
        faults.frontend.wait_for(f"! {{ {here}; }}", 40)
    finally:
        faults.backend.run(f"pkill peer.py; rm -f {SERVICES}+9-1 {THEN}")
    faults.check(case, None)


@each(FRONTENDS)
def test_lying_frontends(faults: Faults, case: Case) -> None:
    stick = faults.stick()
    faults.frontend.push(PEER, "/run/peer.py")
    mode = shlex.quote(case.data["mode"])
    command = f"exec qrexec-client-vm sys-usb qubes.USB+{stick} /run/peer.py frontend {mode}"
    with faults.lab.allowed("qubes.USB", stick, faults.frontend, faults.backend):
        call = faults.frontend.start_command(command)
        if case.data["held"]:
            key = f"/qubes-usb-devices/{stick}/connected-to"
            faults.backend.wait_for(f"qubesdb-read {key}")
            done = faults.take_back(stick)
            assert (done.code, done.stderr) == (0, b"")
            assert faults.driver(stick) == "usb"
        if case.data["mode"] == DEAF:
            call.cancel()  # qrexec has more to send than it wants to hear.
        else:
            call.wait(60)
    faults.check(case, None)


@each([GONE])
def test_backend_without_the_package(faults: Faults, case: Case) -> None:
    stick = faults.stick()
    faults.backend.run("mv /etc/qubes-rpc/qubes.USB /etc/away")
    try:
        done = faults.attach(stick)
    finally:
        faults.backend.run("mv /etc/away /etc/qubes-rpc/qubes.USB")
    faults.check(case, done)
