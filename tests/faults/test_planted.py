# SPDX-License-Identifier: GPL-2.0-or-later
"""What a member of the group qubes can plant in /run/qubes, among the records."""

from tests.lab.guests import Guest

from .conftest import Faults, said_well
from .table import Case, each

RECORDS = "/run/qubes"
PLANTS = {
    "a link to a file of root's": "ln -s /etc/passwd {}",
    "a link to nothing": "ln -s /run/qubes/nothing {}",
    "a link to a folder": "ln -s /etc {}",
    "a pipe": "mkfifo {}",
    "a file of another": "echo 0 > {}; chmod 400 {}",
    "a file of 100 kB": "head -c 100000 /dev/zero > {}",
    "a file of the user's with two names": "touch /tmp/mine; ln /tmp/mine {} || cp /tmp/mine {}",
    "a socket": "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"{}\")'",
    "a folder": "mkdir {}",
    "a full folder": "mkdir {}; touch {}/x",
}
FOLDERS = (PLANTS["a folder"], PLANTS["a full folder"])
BEFORE = [
    Case(
        "privilege",
        f"{what} in the record's place before an attach",
        short=what == "a full folder",
        # A folder cannot be replaced. The record is a hint, so the attach goes on without it.
        data={"plant": plant},
    )
    for what, plant in PLANTS.items()
    if what != "a file of 100 kB"
]
BETWEEN = [
    Case(
        "privilege",
        f"{what} in the record's place before a detach",
        data={"plant": plant},
    )
    for what, plant in PLANTS.items()
]
TEMPORARY = Case("privilege", "a folder in the place of a record that is not yet whole")
OTHERS_PORT = Case("privilege", "a record that names the port of another attachment")
CASES = [*BEFORE, *BETWEEN, TEMPORARY, OTHERS_PORT]


def plant(guest: Guest, command: str, path: str) -> None:
    """As `user`, put something in a path's place."""
    guest.run(f"mv -T {path} /tmp/moved; {command.format(*[path] * 4)}", user="user", check=False)
    guest.run(f"test -e {path} || test -L {path}")


def clear(guest: Guest, path: str) -> None:
    """Take away what was planted, and is still there: in a folder's place nothing is put."""
    guest.run(f"rm -rf {path} /tmp/moved /tmp/mine")


@each(BEFORE)
def test_planted_before_an_attach(faults: Faults, case: Case) -> None:
    stick = faults.stick()
    path = f"{RECORDS}/usb-import-sys-usb-{stick}.state"
    passwd = faults.frontend.read("/etc/passwd")
    plant(faults.frontend, case.data["plant"], path)
    try:
        done = faults.attach(stick)
        assert done.code == 0
        if case.data["plant"] not in FOLDERS:
            assert faults.frontend.run(f"stat -c '%F %U %h' {path}").text == "regular file root 1"
        assert faults.detach(stick).code == 0
    finally:
        clear(faults.frontend, path)
    assert faults.frontend.read("/etc/passwd") == passwd
    faults.check(case, done)


@each(BETWEEN)
def test_planted_before_a_detach(faults: Faults, case: Case) -> None:
    stick = faults.stick()
    path = f"{RECORDS}/usb-import-sys-usb-{stick}.state"
    passwd = faults.frontend.read("/etc/passwd")
    assert faults.attach(stick).code == 0
    plant(faults.frontend, case.data["plant"], path)
    try:
        done = faults.detach(stick)
    finally:
        clear(faults.frontend, path)
    assert faults.frontend.read("/etc/passwd") == passwd
    faults.check(case, done)


@each([TEMPORARY])
def test_planted_in_place_of_a_fresh_record(faults: Faults, case: Case) -> None:
    stick = faults.stick()
    path = f"{RECORDS}/.usb-import-sys-usb-{stick}"
    plant(faults.frontend, PLANTS["a full folder"], path)
    try:
        done = faults.attach(stick)
        assert (done.code, done.stderr) == (0, b"")
        assert faults.detach(stick).code == 0
    finally:
        clear(faults.frontend, path)
    faults.check(case, done)


@each([OTHERS_PORT])
def test_a_record_that_lies(faults: Faults, case: Case) -> None:
    stick = faults.stick()
    assert faults.attach(stick).code == 0
    record = f"{RECORDS}/usb-import-sys-usb-{stick}.state"
    faults.frontend.run(f"cp {record} {RECORDS}/usb-import-sys-usb-9-9.state", user="user")
    said_well(case, faults.detach("9-9"))
    faults.check_attached(stick)
    faults.check(case, faults.detach(stick))
