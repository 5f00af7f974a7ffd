# SPDX-License-Identifier: GPL-2.0-or-later
"""What unprivileged accounts of either qube can reach, above all through sudo."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Faults
from .table import After, Case, each

CALLER = Path(__file__).parent / "guest/caller.py"
PLANTED = "/tmp/planted"
RAN = "/tmp/planted/ran"
LOCKS, RECORDS = "/run/qubes-usb-proxy", "/run/qubes"

NOT_ALLOWED = "sudo: a password is required"
NO_AGENT = "usb-export: QREXEC_AGENT_PID "
NO_MORE = "no more of what every program needs"


def by_sudo(mode: str, told: str = "", *, short: bool = False, may_succeed: bool = False,
            name: str = "", after: After = After.AT_ONCE) -> Case:
    """The account `user` of sys-usb starts the exporter with sudo."""
    return Case(
        "privilege", f"sudo: {name or mode}", told=told, short=short, may_succeed=may_succeed,
        after=after, left_in="sys-usb", data={"mode": mode},
    )


SUDO = [
    by_sudo("as it should be"),
    *(
        by_sudo(f"agent {pid}", NO_AGENT, name=f"QREXEC_AGENT_PID={pid!r}")
        for pid in ("1", "-1", "", "$(reboot)", "99999")
    ),
    by_sudo("PYTHONPATH", short=True),
    by_sudo("PATH"),
    by_sudo("LD_PRELOAD"),
    by_sudo("QREXEC", name="QREXEC_* of 100 kB"),
    by_sudo("a stranger's name", "usb-export: '../../x' is no name of a qube"),
    by_sudo("no name", "usb-export: '' is no name of a qube"),
    by_sudo("many arguments", f"{NOT_ALLOWED}|Argument list too long"),
    by_sudo("closed 0", "usb-export: stdin is no stream socket"),
    by_sudo("closed 1 2"),
    by_sudo("no file may grow", f"{NO_MORE}|usb-export|sudo: ", may_succeed=True),
    by_sudo("few file descriptors", f"{NO_MORE}|Too many open files|sudo: ", may_succeed=True),
    by_sudo("little memory", f"{NO_MORE}|memory|sudo: ", may_succeed=True),
    by_sudo("no processes", "sudo: ", may_succeed=True),
    by_sudo("no stack", "sudo: ", may_succeed=True),
    # An emulated one needs more than that even for the repair.
    by_sudo(
        "a second of processor time", "usb-export", may_succeed=True, after=After.NEXT_COMMAND
    ),
    *(by_sudo(f"timer {seconds}", "", may_succeed=True) for seconds in (0.1, 0.5, 2)),
    by_sudo("signals are ignored and blocked"),
    by_sudo("^C", "stopped by a signal", may_succeed=True),
]
# The exporter that somebody started so is taken back by dom0.
HELD = [
    by_sudo("^Z"),
    by_sudo("^\\"),
    by_sudo("signals", name="all signals to all of its processes"),
]
ANCESTOR = Case(
    "privilege",
    "sudo: QREXEC_AGENT_PID is an ancestor of root's",
    told=f"{NO_AGENT}.* is not the agent that started this",
)
ANOTHER = Case(
    "privilege", "sudo: QREXEC_AGENT_PID is another process of root's", told=ANCESTOR.told
)
STRANGER = Case("privilege", "an account outside of the group qubes")
MEMBER = Case("privilege", "an account of the group qubes, without sudo", short=True)
ARGUMENTS = [
    Case("privilege", f"the service argument is {argument!r}", told=told,
         data={"argument": argument})
    for argument, told in (
        ("usb1", "'usb1' is a root hub"),
        ("2-1:1.0", "is one interface of a device"),
        ("../../etc", "names no USB device"),
        ("2-1/..", "names no USB device"),
        ("--help", "names no USB device"),
        ("0x1234", "is no vendor and product"),
        ("2" * 40, "names no USB device"),
        ("", "one argument is needed"),
    )
]

RECORD = "usb-import-sys-usb-2-1.state"
CASES = [*SUDO, *HELD, ANCESTOR, ANOTHER, STRANGER, MEMBER, *ARGUMENTS]


@pytest.fixture
def planted(faults: Faults) -> Iterator[None]:
    """A folder of `user` with programs and modules that note when they are run."""
    script = f"#!/bin/sh\\ntouch {RAN}\\n"
    python = f"open({RAN!r}, 'w')\\n"
    names = "modprobe qubesdb-write usbguard python3 sh"
    faults.backend.push(CALLER, "/tmp/caller.py")
    # sudo complains otherwise.
    faults.backend.run("echo 127.0.0.1 sys-usb > /etc/hosts")
    faults.backend.run(
        f"mkdir -p {PLANTED}/usb_proxy && cd {PLANTED};"
        f" for name in {names}; do printf {shlex.quote(script)} > $name; chmod 755 $name; done;"
        " for name in usb_proxy/__init__ sitecustomize os errno _socket; do"
        f" printf {shlex.quote(python)} > $name.py; done",
        user="user",
    )
    yield
    faults.backend.run(f"rm -rf {PLANTED}")


def call(faults: Faults, device: str, mode: str) -> str:
    """The command of `user` for a mode of `caller.py`."""
    return f"exec /tmp/caller.py {device} {shlex.quote(mode)}"


@each(SUDO)
@pytest.mark.usefixtures("planted")
def test_exporter_by_sudo(faults: Faults, case: Case) -> None:
    command = call(faults, faults.stick(), case.data["mode"])
    done = faults.backend.run(command, user="user", check=False)
    assert faults.backend.run(f"test -e {RAN}", check=False).code == 1, "root ran what was planted"
    sudos_own = all(line.startswith(b"sudo: ") for line in done.stderr.splitlines())
    if done.code > 128 or done.code == 0 or (sudos_own and case.may_succeed):
        # A limit or timer that the caller set killed something, or sudo: the caller's own loss.
        assert not case.told or case.may_succeed
        faults.check(case, None)
    else:
        faults.check(case, done)


@each(HELD)
@pytest.mark.usefixtures("planted")
def test_taking_back_from_a_caller_of_sudo(faults: Faults, case: Case) -> None:
    stick = faults.stick()
    command = faults.backend.start_command(call(faults, stick, case.data["mode"]), user="user")
    faults.backend.wait_for(f"qubesdb-read /qubes-usb-devices/{stick}/connected-to")
    done = faults.take_back(stick)
    assert (done.code, done.stderr) == (0, b"")
    if case.data["mode"] == "^Z":
        command.cancel()  # The shell above the exporter stands still until its session ends.
    else:
        assert b"was sent" not in command.wait(30).stderr
    faults.check(case, None)


@each([ANCESTOR, ANOTHER])
@pytest.mark.usefixtures("planted")
def test_sudo_signals_nobody_of_roots(faults: Faults, case: Case) -> None:
    stick = faults.stick()
    start = "sleep 60 & pid=$!" if case is ANOTHER else "pid=$$"
    become = "setpriv --reuid user --regid user --init-groups"
    done = faults.backend.run(
        f'{start}; {become} /tmp/caller.py {stick} "agent $pid"; code=$?;'
        " [ $pid = $$ ] || kill $pid || echo it was killed >&2; exit $code",
        check=False,
    )
    faults.check(case, done)


REFUSED = (
    "cat {locks}/*.lock",
    "rm {locks}/export-{device}.lock",
    "touch {locks}/x",
    "echo 0 > /sys/devices/platform/vhci_hcd.0/detach",
    "echo '0 0 131074 3' > /sys/devices/platform/vhci_hcd.0/attach",
    "echo 'add {device}' > /sys/bus/usb/drivers/usbip-host/match_busid",
    "echo {device} > /sys/bus/usb/drivers/usbip-host/unbind",
    "echo -1 > /sys/bus/usb/devices/{device}/usbip_sockfd",
    "kill $(pgrep -f '[l]aunch usb-')",
    "/usr/lib/qubes/usb-detach-all",
    "/usr/lib/qubes/usb-reset {device}",
    "/usr/lib/qubes-usb-proxy/launch usb-repair",
    "echo {device} | /etc/qubes-rpc/qubes.USBDetach",
    "echo sys-usb {device} | /etc/qubes-rpc/qubes.USBDetach",
    "sudo -n /usr/lib/qubes/usb-detach-all",
    "sudo -n /usr/lib/qubes/usb-import {records}/{record}",
)
REFUSED_TO_STRANGERS = (
    *REFUSED,
    "sudo -n /usr/lib/qubes/usb-export {device}",
    "ls {records}",
    "touch {records}/x",
)


@each([STRANGER, MEMBER])
def test_what_an_account_cannot_do_to_an_attachment(faults: Faults, case: Case) -> None:
    stick = faults.stick()
    faults.run_both("id stranger 2>&- || useradd stranger")
    assert faults.attach(stick).code == 0
    faults.check_attached(stick)
    names = {"locks": LOCKS, "records": RECORDS, "record": RECORD, "device": stick}
    user, attempts = ("stranger", REFUSED_TO_STRANGERS) if case is STRANGER else ("user", REFUSED)
    for guest in (faults.backend, faults.frontend):
        for attempt in attempts:
            done = guest.run(attempt.format(**names), user=user, check=False)
            assert done.code, f"{guest.name}: {user} may {attempt}"
            assert "Traceback" not in done.stderr.decode()
    faults.check_attached(stick)
    done = faults.detach(stick)
    faults.check(case, done)


@each(ARGUMENTS)
def test_service_arguments(faults: Faults, case: Case) -> None:
    """From an account of the frontend, where the policy allows any argument."""
    argument = shlex.quote(f"qubes.USB+{case.data['argument']}")
    with faults.lab.allowed("qubes.USB", "*", faults.frontend, faults.backend):
        done = faults.frontend.run(
            f"qrexec-client-vm sys-usb {argument}", user="user", check=False
        )
    faults.check(case, done)
