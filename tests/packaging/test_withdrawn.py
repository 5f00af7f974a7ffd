# SPDX-License-Identifier: GPL-2.0-or-later
"""A package that was installed and is no more: what stays below /etc grants and breaks nothing."""

import shutil
from pathlib import Path

import pytest

from usb_proxy.catalogue import ENTRIES

from .machine import Root, copy_of, run
from .test_install import PRIVATE, stub_deb, stub_rpm

SUDOERS = "etc/sudoers.d/qubes-usb-proxy"
PROGRAMS = {
    "qubes.USB": "usb-export",
    "qubes.USBAttach": "usb-attach",
    "qubes.USBDetach": "usb-detach",
}
ALLOWED = "/usr/bin/qubes-usb-proxy"


FOLDER = "run/qubes-usb-proxy"
SWITCHES = {
    "gate-usb3": "sys/bus/usb/devices/usb3/interface_authorized_default",
    "devices-usb4": "sys/bus/usb/devices/usb4/authorized_default",
}


@pytest.fixture
def root(packages: dict[str, Path], tmp_path: Path) -> Root:
    """With 4.4 and what is like 4.3.6 in /srv."""
    made = copy_of("full", tmp_path)
    shutil.copy(packages["deb"], made.folder / "srv/new.deb")
    shutil.copy(stub_deb(tmp_path, "qubes-usb-proxy", "4.3.6"), made.folder / "srv/old.deb")
    return made


def may(root: Root) -> str:
    """What sudo lets a member of the group qubes do."""
    return root.run("sudo", "-l", "-U", "user")


@pytest.mark.parametrize("edited", [False, True], ids=["ours", "edited"])
def test_after_a_downgrade(root: Root, edited: bool) -> None:
    """4.3.6 has no sudoers file: ours goes; one that was changed is put away, and comes back."""
    before = root.paths()
    root.run("dpkg", "-i", "/srv/new.deb")
    if edited:
        with (root.folder / SUDOERS).open("a") as file:
            file.write("# changed\n")
    text = (root.folder / SUDOERS).read_text()
    assert ALLOWED in may(root)
    root.run("dpkg", "-i", "--force-downgrade", "--force-confnew", "/srv/old.deb")
    assert not (root.folder / SUDOERS).exists()
    assert not (root.folder / PRIVATE).exists()
    assert ALLOWED not in may(root)
    if edited:
        root.run("dpkg", "--remove", "qubes-usb-proxy")
    root.run("dpkg", "-i", "--force-confold", "/srv/new.deb")
    assert (root.folder / SUDOERS).read_text() == text
    root.run("dpkg", "-i", "--force-downgrade", "--force-confnew", "/srv/old.deb")
    root.run("dpkg", "--purge", "qubes-usb-proxy")
    left = {path for path in root.paths() - before if not path.endswith(".dpkg-dist")}
    assert left == ({f"{SUDOERS}.dpkg-old"} if edited else set())


def test_after_a_removal(root: Root) -> None:
    """What sudo allows is gone; each service that apt leaves answers with a sentence of ours."""
    root.run("dpkg", "-i", "/srv/new.deb")
    root.run("apt-get", "remove", "-y", "qubes-usb-proxy")
    assert not (root.folder / "usr/lib/qubes").exists()
    done = root.attempt("sudo", "-n", ALLOWED, "status", user="user")
    assert done.stderr == f"sudo: {ALLOWED}: command not found\n"
    services = {path.name for path in (root.folder / "etc/qubes-rpc").iterdir()}
    assert services == set(PROGRAMS)
    for service, program in PROGRAMS.items():
        done = root.attempt(f"/etc/qubes-rpc/{service}", "2-1")
        assert (done.returncode, done.stdout) == (7, "")
        assert done.stderr == f"{program}: {ENTRIES['UP-780'][0]} [UP-780]\n"


IN_ROOT = {
    "deb": "dpkg -r qubes-usb-proxy",
    "deb, to an older one": "dpkg -i --force-downgrade --force-confnew /srv/old.deb",
    "make": "make -C /srv/qubes-usb-proxy-* uninstall-vm",
}
FROM_OUTSIDE = {
    "rpm": "rpm --root {root} -e --nodeps qubes-usb-proxy",
    "rpm, to an older one": "rpm --root {root} -U --nodeps --force --oldpackage {old}",
    "arch": "pacman {options} -Rdd qubes-usb-proxy",
}


@pytest.mark.parametrize("how", [*IN_ROOT, *FROM_OUTSIDE])
def test_no_bus_stays_closed(
    root: Root, dist: Path, packages: dict[str, Path], tmp_path: Path, how: str
) -> None:
    """With a device attached: the rule that gives others on its bus their drivers goes."""
    (tmp_path / "pacman").mkdir()
    stub_rpm(tmp_path, "qubes-usb-proxy", tmp_path / "none", [])
    options = f"--root {root.folder} --dbpath {tmp_path}/pacman --noconfirm"
    names = {"root": str(root.folder), "options": options}
    names["old"] = str(next((tmp_path / "RPMS/noarch").iterdir()))
    install = f"pacman {options} -Udd {packages['arch']}"
    if how.startswith("rpm"):
        install = f"rpm --root {root.folder} -U --nodeps {packages['rpm']}"
    if how in FROM_OUTSIDE:
        run(*install.split())
    elif how == "make":
        (tarball,) = dist.glob("*.tar.gz")
        run("tar", "-C", root.folder / "srv", "-xf", tarball)
        root.run("sh", "-c", "make --silent -C /srv/qubes-usb-proxy-* install-vm")
    else:
        root.run("dpkg", "-i", "/srv/new.deb")
    for switch in SWITCHES.values():
        (root.folder / switch).parent.mkdir(parents=True)
        (root.folder / switch).write_text("0\n")
    if how in FROM_OUTSIDE:
        (root.folder / FOLDER).mkdir()
        for gate in SWITCHES:
            (root.folder / FOLDER / gate).touch()
        run(*FROM_OUTSIDE[how].format(**names).split())
        assert list((root.folder / FOLDER).iterdir()) == []
    else:
        make = f"mkdir /{FOLDER}; cd /{FOLDER}; touch {' '.join(SWITCHES)}; cd /"
        script = f"{make}; {IN_ROOT[how]} >&2; ls /{FOLDER}"
        assert root.run("sh", "-c", script) == ""
    for switch in SWITCHES.values():
        assert (root.folder / switch).read_text() == "1\n"
    assert not (root.folder / PRIVATE).exists()
