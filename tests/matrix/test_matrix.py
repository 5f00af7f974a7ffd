# SPDX-License-Identifier: GPL-2.0-or-later
"""The packages of each suite: what they hold, and what becomes of them in each suite."""

import os
import platform
import re
import shutil
from pathlib import Path

import pytest

from tests.packaging.machine import Root, need_root, run
from tests.packaging.manifest import Manifest, of_package
from tests.packaging.test_install import FOLDERS_OF_THE_PLATFORM, PRIVATE, stub_deb
from tests.packaging.test_linters import OF_LATER_POLICY, OF_STDEB

from . import programs
from .build import Built, unpack
from .conftest import Builder, Roots
from .roots import BUILDERS, NEWEST, Workshop, cache_folder, cached, suites, unmount_below

RPM_ON_DEBIAN = "$(rpm --help | grep -o -e --force-debian)"
"""Older ones want to be told that Debian may be meant."""
CLEAN = {
    # Name: the root to install into, the commands to install, remove and purge.
    "deb": (
        "full",
        "apt-get install -qy -o Dpkg::Options::=--force-confold",
        "apt-get remove -qy",
        "apt-get purge -qy",
    ),
    "rpm": ("full", f"rpm -U --nodeps {RPM_ON_DEBIAN}", "rpm -e", ""),
    "arch": (
        "full",
        "pacman --config /srv/pacman.conf --noconfirm -Udd",
        "pacman --config /srv/pacman.conf --noconfirm -Rdd",
        "",
    ),
}
PACMAN = "[options]\nArchitecture = x86_64\nSigLevel = Never\nLogFile = /dev/null\n"
SET_ASIDE = re.compile(r"\.(dpkg-\w+|rpm(new|orig|save)|pac(new|orig|save))$")
"""How package managers name what they could not decide on."""
HERE = platform.freedesktop_os_release().get("VERSION_CODENAME")
DOM0_DEPENDS = (("hwdata", "0.390"), ("qubes-core-dom0", "4.3.9"), ("qubes-core-dom0", "4.3.35"))
"""Enough once the last is there. For apt a list of the same second and size would be the same."""

pytestmark = pytest.mark.timeout(1800)


def test_a_root_that_was_not_finished_has_nothing_of_this_machine(tmp_path: Path) -> None:
    need_root()
    mine, root = tmp_path / "mine", tmp_path / "root"
    for each in (mine, root / "dev/shm"):
        each.mkdir(parents=True)
    (mine / "file").touch()
    run("mount", "--bind", mine, root / "dev/shm")
    unmount_below(root)
    shutil.rmtree(root)
    assert (mine / "file").exists()


@pytest.mark.parametrize("user", ["root", "user"])
def test_check_packages(tarball: Path, builder: str, user: str, shared: Path) -> None:
    """The same as `make check-packages`, in a chroot; its own roots are those of the host."""
    if user == "root" and builder == HERE:
        pytest.skip("they take minutes, and `make check-packages` runs them on this very Debian")
    folder = shared / f"check-{builder}-{user}"
    shop = Workshop(cached("check", builder), folder, cache=cache_folder().parent)
    (folder / "tmp").mkdir()
    (folder / "tmp").chmod(0o1777)
    shutil.copy(tarball, folder / "sources.tar.gz")
    unpack(shop, "sources", owner=user)
    script = "cd sources; python3 -m pytest -p no:cacheprovider tests/packaging"
    said = shop.run(
        script, user=user, HOME="/srv/tmp", TMPDIR="/srv/tmp", XDG_CACHE_HOME="/mnt/cache"
    )
    assert re.search(r" [1-9]\d+ passed", said), said
    shutil.rmtree(folder)


def test_as_a_user_the_same(built: Builder, builder: str) -> None:
    """In a chroot, where nobody may make a name space; with another umask, time and folder."""
    made = built(builder)
    unpack(made.workshop, "another place", owner="user")
    made.workshop.run(
        'umask 077; cd "another place"; exec make -j4 packages',
        user="user",
        HOME="/nonexistent",
        TZ="Asia/Tokyo",
        LANG="de_DE.UTF-8",
        PYTHONDONTWRITEBYTECODE="1",
        PYTHONOPTIMIZE="2",
        PYTHONHASHSEED="7",
    )
    assert made.hashes(made.folder / "another place/dist") == made.hashes()


def test_lintian(built: Builder, builder: str) -> None:
    made = built(builder)
    for files, more in (
        (("source", "deb"), OF_LATER_POLICY),
        (("dom0-deb",), OF_STDEB),
    ):
        names = " ".join(f"sources/dist/{made.package(form).name}" for form in files)
        said = made.workshop.run(
            f"lintian -EviI --pedantic --fail-on=none {more} {names}", user="user"
        )
        assert [line for line in said.splitlines() if not line.startswith("N:")] == []


def test_rpmlint(built: Builder, builder: str) -> None:
    said = (
        built(builder)
        .workshop.attempt(
            "cd sources; exec rpmlint --config=tests/packaging/rpmlint.toml build/rpm_spec/*.spec"
            " dist/*.rpm"
        )
        .stdout
    )
    assert re.findall(r"^.*: [EWI]: .*$", said, re.MULTILINE) == []
    assert "2 packages and 2 specfiles checked; 0 errors, 0 warnings" in said, said


@pytest.mark.skipif(len(suites(*BUILDERS)) < 2, reason="one suite alone: SUITE is set")
def test_all_suites_build_the_same(built: Builder) -> None:
    """The same tarball, and packages that hold the same and ask for the same."""
    one, *others = [built(suite) for suite in BUILDERS]
    for other in others:
        assert (
            one.hashes()[one.package("tarball").name]
            == other.hashes()[other.package("tarball").name]
        )
        for form in CLEAN | {"dom0-deb": (), "dom0-rpm": ()}:
            assert held(one, form) == held(other, form), form
            assert relations(one, form) == relations(other, form), form


def held(made: Built, form: str) -> Manifest:
    """Paths, types, modes, owners and contents."""
    return of_package(made.package(form))


def relations(made: Built, form: str) -> list[str]:
    """What a package tells of itself: all but how and with what it was packed."""
    name = f"sources/dist/{made.package(form).name}"
    script = {
        "deb": f"dpkg-deb --field {name}; dpkg-deb --ctrl-tarfile {name} | tar -xOf - ./conffiles",
        "rpm": "rpm -qp --qf '%{NVRA} %{SUMMARY} %{LICENSE} %{URL}\\n' --provides --requires"
        f" --recommends --suggests --conflicts --obsoletes --scripts --triggers -c {name}",
        "arch": f"bsdtar -xOf {name} .PKGINFO",
    }[form.removeprefix("dom0-")]
    said = made.workshop.run(script)
    # rpm of Debian 13 tells which Python project it is, as Fedora's does.
    noise = re.compile(
        r"^(Installed-Size|# |makepkgopt|size =|xdata =|.*rpmlib\(|python3(\.\d+)?dist\()"
    )
    return sorted(line for line in said.splitlines() if not noise.match(line))


def test_apt_brings_what_it_needs(built: Builder, builder: str, target: str, a_root: Roots) -> None:
    root = a_root("clean", target)
    new = Path(shutil.copy(built(builder).package("deb"), root.folder / "srv"))
    type_in(root, f"{CLEAN['deb'][1]} /srv/{new.name}")
    programs.check(root)


@pytest.mark.parametrize("form", CLEAN)
def test_install_upgrade_remove(
    built: Builder, form: str, builder: str, target: str, a_root: Roots
) -> None:
    """Into a system without it, and over 4.3.6: it runs, and leaves nothing when it goes."""
    made = built(builder)
    root_name, install, remove, purge = CLEAN[form]
    root = a_root(root_name, target)
    (root.folder / "srv/pacman.conf").write_text(PACMAN)
    (root.folder / "srv/old").mkdir()
    new = Path(shutil.copy(made.package(form), root.folder / "srv"))
    old = Path(shutil.copy(made.old(form), root.folder / "srv/old"))
    before = with_platform(root, form)
    for packages in ([new], [old, new]):
        for package in packages:
            type_in(root, f"{install} /srv/{package.relative_to(root.folder / 'srv')}")
        assert [path for path in root.paths() - before if SET_ASIDE.search(path)] == []
        programs.check(root)
        type_in(root, f"{remove} qubes-usb-proxy")
        assert [
            p for p in root.paths() - before if PRIVATE in p or p.startswith("usr/lib/qubes")
        ] == []
        if purge:
            type_in(root, f"{purge} qubes-usb-proxy")
        programs.same(root, before)


def with_platform(root: Root, form: str) -> set[str]:
    """What is there, once other packages' folders are, where those own them."""
    for folder in FOLDERS_OF_THE_PLATFORM if form == "rpm" else ():
        (root.folder / folder[1:]).mkdir(parents=True, exist_ok=True)
    return root.paths()


def type_in(root: Root, command: str) -> str:
    said = root.run("sh", "-c", f"{command} 2>&1")
    assert not re.search(r"(?i)traceback|scriptlet|^error", said), said
    return said


@pytest.mark.parametrize("form", ["dom0-deb", "dom0-rpm"])
def test_dom0(built: Builder, form: str, builder: str, target: str, a_root: Roots) -> None:
    """Where core-admin is of the version that it needs; and not where that is older."""
    root = a_root("full", target)
    new = Path(shutil.copy(built(builder).package(form), root.folder / "srv"))
    _, install, remove, purge = CLEAN[form.removeprefix("dom0-")]
    if form == "dom0-deb":
        for name, version in DOM0_DEPENDS:
            older = root.attempt("sh", "-c", f"{install} /srv/{new.name}")
            assert older.returncode and "unmet dependencies" in older.stdout + older.stderr
            folder = root.folder / f"srv/{version}"
            stub = stub_deb(folder, name, version).relative_to(root.folder)
            type_in(root, f"dpkg -i /{stub}")
    before = with_platform(root, form.removeprefix("dom0-"))
    type_in(root, f"{install} /srv/{new.name}")
    listed = sorted(held(built(builder), form))
    (module,) = [path for path in listed if path.endswith("/usb_proxy/dom0/extension.py")]
    programs.check_dom0(root, str(Path(module).parents[2]))
    type_in(root, f"{purge or remove} qubes-usb-proxy-dom0")
    programs.same(root, before)


@pytest.mark.parametrize("user", ["root", "user"])
def test_from_the_tarball(tarball: Path, system: str, user: str, a_root: Roots) -> None:
    """`make install-vm` twice, also where a umask is strict; all tests; `make uninstall-vm`."""
    if system == NEWEST and user == "root":
        pytest.skip("one account is enough for one more Python")
    if user == "root" and system == HERE and "SUDO_UID" not in os.environ:
        pytest.skip("they take minutes, and `make check-quick` runs them on this very Debian")
    root = a_root("full", system)
    before = root.paths()
    (root.folder / "srv/sources").mkdir()
    run("tar", "-C", root.folder / "srv/sources", "--strip-components=1", "-xf", tarball)
    for _ in range(2):
        type_in(root, "sh -c 'umask 077; exec make --silent -C /srv/sources install-vm'")
    programs.check(root)
    programs.debian_tests(root, user)
    programs.quick_tests(root, user)
    type_in(root, "make --silent -C /srv/sources uninstall-vm")
    shutil.rmtree(root.folder / "srv/sources")
    programs.same(root, before)


def test_python_is_the_newest(a_root: Roots) -> None:
    if not suites(NEWEST):
        pytest.skip("one suite alone: SUITE is set")
    said = a_root("full", NEWEST).run("python3", "-c", "import sys; print(sys.version)")
    assert said.startswith("3.14."), said
