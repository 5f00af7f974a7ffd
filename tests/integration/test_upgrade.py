# SPDX-License-Identifier: GPL-2.0-or-later
"""An upgrade from the folder of the first 4.4.0, while a device is attached."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.qubes import PACKAGES, Qubes, guest_hash
from tests.lab.router import Completed

from .test_tool import status

OLD, NEW = "/usr/lib/qubes-usb-proxy", "/usr/lib/qubes/usb-proxy"


def of_old_layout(package: Path, folder: Path) -> Path:
    """Today's package with its modules in the folder where the first 4.4.0 had them."""
    tree = folder / "tree"
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
    (tree / NEW[1:]).rename(tree / OLD[1:])
    (tree / "DEBIAN/md5sums").unlink()
    changed = 0
    for path in tree.rglob("*"):
        if path.is_file() and not path.is_symlink() and NEW.encode() in path.read_bytes():
            path.write_bytes(path.read_bytes().replace(NEW.encode(), OLD.encode()))
            changed += 1
    assert changed > 5
    old = folder / "old.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", tree, old], check=True)
    return old


@pytest.fixture(scope="module")
def old_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (today,) = PACKAGES.glob("qubes-usb-proxy_*.deb")
    return of_old_layout(today, tmp_path_factory.mktemp("old"))


@pytest.fixture
def upgrade(qubes: Qubes, old_package: Path) -> Iterator[Callable[[], None]]:
    """Both qubes have the old package; a call upgrades them to today's."""
    guests = (qubes.backend, qubes.frontend)
    (today,) = PACKAGES.glob("qubes-usb-proxy_*.deb")

    def install(package: Path, gone: str) -> None:
        for guest in guests:
            guest.push(package, "/srv/package.deb")
        calls = [guest.start_command("dpkg -i /srv/package.deb 2>&1") for guest in guests]
        for guest, call in zip(guests, calls, strict=True):
            done = call.wait(240)
            assert done.code == 0, done.text
            assert guest.run(f"test -e {gone}", check=False).code == 1, done.text

    install(old_package, NEW)
    yield lambda: install(today, OLD)
    if any(guest.run(f"test -d {OLD}", check=False).code == 0 for guest in guests):
        install(today, OLD)


def answered(call: Callable[[Qubes, str], Completed]) -> Callable[[Qubes, str], None]:
    """A service that has to succeed."""

    def end(qubes: Qubes, device: str) -> None:
        done = call(qubes, device)
        assert (done.code, done.stderr) == (0, b"")

    return end


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(answered(Qubes.detach), id="detached in the frontend"),
        pytest.param(answered(Qubes.take_back), id="detached in the backend"),
    ],
)
def test_a_device_stays_attached(
    qubes: Qubes,
    upgrade: Callable[[], None],
    stick: str,
    end: Callable[[Qubes, str], None],
) -> None:
    """It works on, today's programs know it and end it, and the next attach is as any."""
    assert qubes.attach(stick).code == 0
    for guest in (qubes.backend, qubes.frontend):
        assert OLD in guest.run("pgrep -af '[l]aunch usb-'").text
    before = guest_hash(qubes.frontend, "/dev/sda")
    upgrade()
    assert guest_hash(qubes.frontend, "/dev/sda") == before
    (device,) = status(qubes.backend)["devices"]
    assert (device["state"], device["peer"]) == ("attached", "work")
    (port,) = status(qubes.frontend)["attachments"]
    assert (port["state"], port["device"]) == ("attached", stick)
    end(qubes, stick)
    assert qubes.await_clean() == []
    assert qubes.driver(stick) == "usb"
    assert qubes.connected_to(stick) is None
    done = qubes.attach(stick)
    assert (done.code, done.stderr) == (0, b"")
    assert guest_hash(qubes.frontend, "/dev/sda") == before
    for guest in (qubes.backend, qubes.frontend):
        assert NEW in guest.run("pgrep -af '[l]aunch usb-'").text
    assert qubes.detach(stick).code == 0
    assert qubes.await_clean() == []


@pytest.mark.parametrize(
    ("side", "program"), [("backend", "usb-export"), ("frontend", "usb-import")]
)
def test_what_dies_later(
    qubes: Qubes, upgrade: Callable[[], None], stick: str, side: str, program: str
) -> None:
    """The shell around it knows the old folder alone, so the next attach cleans up."""
    assert qubes.attach(stick).code == 0
    upgrade()
    guest = getattr(qubes, side)
    guest.run(f"pkill -9 -f '[q]ubes-usb-proxy/launch {program}'")
    for each in (qubes.backend, qubes.frontend):
        each.wait_for("! pgrep -f '[l]aunch usb-|[l]ib/qubes/usb-(export|import)'")
    done = qubes.attach(stick)
    assert (done.code, done.stderr) == (0, b"")
    assert qubes.detach(stick).code == 0
    assert qubes.await_clean() == []
