# SPDX-License-Identifier: GPL-2.0-or-later
"""What the Makefile takes from where it stands: named files, and nothing of its caller."""

import os
import shutil
import tarfile
import tempfile
from pathlib import Path
from urllib.parse import quote

import pytest

from .conftest import sources
from .machine import TOP, attempt, need, run
from .manifest import Manifest, of_folder

STRAYS = (
    "secret.md~",
    "docs/notes.md",
    "docs/users.md.orig",
    "man/usb-reset.8~",
    "policy/80-usb-proxy.policy~",
    "polkit/old.policy",
    "programs/usb-import.rej",
    "programs/usb-own",
    "qubes-rpc/qubes.USB.orig",
    "qubes-rpc/qubes.USBOwn",
    "sudoers/foo~",
    "udev/80-qubes-usb-reset.rules.orig",
    "udev/99-own.rules",
    "usb_proxy/commands/.#usb_import.py",
    "usb_proxy/errors.py~",
)
HOSTILE = {
    "CDPATH": "/usr",
    "GZIP": "-1",
    "HOME": "/nonexistent",
    "LANG": "de_DE.UTF-8",
    "LC_ALL": "C",
    "MAKEFLAGS": "-j4",
    "POSIXLY_CORRECT": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "7",
    "PYTHONHOME": "/nonexistent",
    "PYTHONOPTIMIZE": "2",
    "PYTHONPATH": "/nonexistent",
    "PYTHONPYCACHEPREFIX": "/nonexistent",
    "RPM_PACKAGER": "somebody",
    "TAR_OPTIONS": "--exclude=*.md",
    "TZ": "Asia/Tokyo",
    "XZ_OPT": "-1",
    "ZSTD_CLEVEL": "1",
}
"""What a packager may have set."""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return sources(tmp_path / "sources")


def install(place: Path, target: Path, **environment: str) -> Manifest:
    for side in ("vm", "dom0"):
        run("make", f"install-{side}", f"DESTDIR={target}", folder=place, **environment)
    return of_folder(target)


def git(place: Path, *command: str) -> None:
    name = ["-c", "user.name=T", "-c", "user.email=t@localhost"]
    run("git", *name, *command, folder=place)


def listed(place: Path) -> set[str]:
    run("make", "dist", folder=place)
    (tarball,) = (place / "dist").glob("*.tar.gz")
    with tarfile.open(tarball) as tar:
        return {name.partition("/")[2] for name in tar.getnames()}


@pytest.mark.parametrize("kind", ["git", "MANIFEST", "neither"])
def test_a_stray_file_is_not_installed_nor_packed(place: Path, tmp_path: Path, kind: str) -> None:
    expected = install(place, tmp_path / "expected")
    names = {*(place / "MANIFEST").read_text().split(), "MANIFEST"}
    if kind != "MANIFEST":
        (place / "MANIFEST").unlink()
    if kind == "git":
        git(place, "init", "--quiet")
        git(place, "add", ".")
    for name in STRAYS:
        (place / name).write_text("stray\n")
        (place / name).chmod(0o755)
    if kind != "neither":
        (place / "usb_proxy/tool/own.py").write_text("stray\n")
        assert listed(place) == names
    else:
        done = attempt("make", "dist", folder=place)
        assert done.returncode != 0 and "neither git nor a file MANIFEST" in done.stderr
    assert install(place, tmp_path / "found") == expected


def test_what_was_deleted_or_renamed_is_noticed(place: Path) -> None:
    """Also where make ran before, and git was not told."""
    (place / "MANIFEST").unlink()
    git(place, "init", "--quiet")
    git(place, "add", ".")
    before = listed(place)
    (place / "docs/phones.md").unlink()
    git(place, "mv", "docs/users.md", "docs/people.md")
    after = listed(place)
    assert before - after == {"docs/phones.md", "docs/users.md"}
    assert after - before == {"docs/people.md"}


def test_the_environment_changes_nothing(place: Path, tmp_path: Path) -> None:
    """Nor the modes of the sources, a umask, a zone, or a space in both folders."""
    expected = install(place, tmp_path / "expected")
    other = tmp_path / "ot her"
    shutil.copytree(place, other)
    for path in other.rglob("*"):
        path.chmod(path.stat().st_mode & 0o700)
        os.utime(path, (1700000000, 1700000000))
    for side in ("vm", "dom0"):
        make = f"umask 077; exec make install-{side} 'DESTDIR={tmp_path}/fo $$und'"
        run("sh", "-c", make, folder=other, **HOSTILE)
    assert of_folder(tmp_path / "fo $und") == expected
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("fo")] == ["fo $und"]


def test_the_environments_epoch_counts_first(place: Path, tmp_path: Path) -> None:
    install(place, tmp_path / "x", SOURCE_DATE_EPOCH="1234567890")
    private = tmp_path / "x/usr/lib/qubes/usb-proxy/usb_proxy"
    assert private.joinpath("errors.py").stat().st_mtime == 1234567890
    run("make", "dist", folder=place, SOURCE_DATE_EPOCH="1234567890")
    with tarfile.open(next((place / "dist").glob("*.tar.gz"))) as tar:
        assert {member.mtime for member in tar} == {1234567890}


@pytest.mark.parametrize("order", [("vm", "dom0"), ("dom0", "vm")])
def test_uninstall_takes_what_install_made(tmp_path: Path, place: Path, order: list[str]) -> None:
    """Twice installed, used by another Python, and beside folders that were there."""
    target = tmp_path / "x y"
    foreign = ["etc/qubes-rpc", "usr/share/polkit-1/actions", "usr/lib/python3/dist-packages"]
    for name in foreign:
        (target / name).mkdir(parents=True)
    before = of_folder(target)
    first = install(place, target)
    assert install(place, target) == first
    for module in target.rglob("*.py"):
        (module.parent / f"__pycache__/{module.stem}.cpython-399.opt-1.pyc").write_text("x")
    for each in order:
        run("make", f"uninstall-{each}", f"DESTDIR={target}", folder=place)
    assert of_folder(target) == before


@pytest.mark.parametrize("each", ["vm", "dom0"])
def test_uninstall_leaves_nothing(tmp_path: Path, place: Path, each: str) -> None:
    target = tmp_path / "x"
    run("make", f"install-{each}", f"DESTDIR={target}", folder=place)
    before = of_folder(target)
    run("make", f"install-{each}", f"DESTDIR={target}", folder=place)
    assert of_folder(target) == before
    run("make", f"uninstall-{each}", f"DESTDIR={target}", folder=place)
    assert of_folder(target) == {}
    run("make", f"uninstall-{each}", f"DESTDIR={tmp_path}/not there", folder=place)


def test_another_versions_files_go(tmp_path: Path, place: Path) -> None:
    for name in ("usr/lib/qubes-usb-proxy/usb_proxy", "usr/lib/qubes/usb-proxy/usb_proxy"):
        (tmp_path / "x" / name / "__pycache__").mkdir(parents=True)
        (tmp_path / "x" / name / "gone.py").write_text("gone\n")
        (tmp_path / "x" / name / "__pycache__/gone.cpython-311.pyc").write_text("gone\n")
    assert not [path for path in install(place, tmp_path / "x") if "gone" in path]
    assert not (tmp_path / "x/usr/lib/qubes-usb-proxy").exists()


@pytest.mark.parametrize("each", ["4.4.1", "4.4.0"])
def test_another_versions_entry_points_go(tmp_path: Path, place: Path, each: str) -> None:
    """qubesd does not start where one names a module that is gone."""
    target = f"DESTDIR={tmp_path}/x"
    run("make", "install-dom0", target, folder=place)
    (place / "version").write_text("4.4.1\n")
    run("make", "install-dom0", target, folder=place)
    (points,) = (tmp_path / "x").rglob("entry_points.txt")
    assert points.parent.name == "qubes_usb_proxy_dom0-4.4.1.egg-info"
    (place / "version").write_text(f"{each}\n")
    run("make", "uninstall-dom0", target, folder=place)
    assert of_folder(tmp_path / "x") == {}


def test_nothing_is_written_to_the_sources(tmp_path: Path, place: Path) -> None:
    before = of_folder(place)
    as_root = ["--map-root-user"] if os.geteuid() else []
    read_only = ["unshare", *as_root, "--mount", "sh", "-ec"]
    if attempt(*read_only, "true").returncode != 0:
        pytest.skip("no name space for a read-only file system")
    mount = f'mount --bind "{place}" "{place}"; mount -o remount,ro,bind "{place}"; cd "{place}"'
    for target in ("install-vm", "install-dom0", "uninstall-vm", "uninstall-dom0"):
        run(*read_only, f"{mount}; ! touch x 2>/dev/null; make {target} DESTDIR={tmp_path}/x")
    assert of_folder(place) == before
    assert of_folder(tmp_path / "x") == {}


def test_as_the_builder_fills_it_in(tmp_path: Path) -> None:
    """qubes-builder's generate-spec stops at @REL@, and knows these words alone."""
    need("rpmspec")
    for spec in (TOP / "rpm_spec").glob("*.spec.in"):
        text = spec.read_text()
        assert "@REL@" not in text and "\nRelease:        1%{?dist}\n" in text
        for word, value in (("@VERSION@", "4.4.0"), ("@CHANGELOG@", "")):
            assert word in text
            text = text.replace(word, value)
        assert "@" not in text
        filled = tmp_path / spec.name.removesuffix(".in")
        filled.write_text(text)
        said = run("rpmspec", "-q", "--define", "dist .fc41", "--qf", "%{release} ", filled)
        assert said == "1.fc41 "
        needed = run("rpmspec", "-q", "--buildrequires", filled).split()
        assert ("systemd-rpm-macros" in needed) == ("_udevrulesdir" in text)
        assert {"make", "python3-devel"} <= set(needed)
    text = (TOP / "archlinux/PKGBUILD.in").read_text()
    text = text.replace("@VERSION@", "4.4.0").replace("@REL@", "2")
    assert "@" not in text.replace("qubes-devel@googlegroups.com", "")


def test_the_changelogs_of_both_specs_are_whole(place: Path) -> None:
    specs = [f"build/rpm_spec/qubes-usb-proxy{side}.spec" for side in ("", "-dom0")]
    run("make", "-j4", *specs, folder=place)
    first, second = ((place / spec).read_text().partition("%changelog\n")[2] for spec in specs)
    assert first == second
    assert first.count("\n* ") == 0 and first.startswith("* ") and first.count("\n- ") > 10


@pytest.mark.parametrize("name", ["a b", "50%20off", "it's"])
def test_without_url_the_repository_is_where_it_is_made(
    place: Path, tmp_path: Path, name: str
) -> None:
    """Its address is that of the folder, as URLs are written: apt takes %20 for a space."""
    here = place.rename(tmp_path / name)
    show = "show: ; @printf '%s\\n' $(ADDRESS)"
    said = run("make", "--silent", "--eval", show, "show", folder=here)
    path = quote(str(here), safe="/'")
    assert said == f"file://{path}/dist/repo\n"


def test_make_alone_says_where_it_stops(place: Path) -> None:
    shutil.rmtree(place / "usb_proxy")
    done = attempt("make", "install-vm", "DESTDIR=x", folder=place)
    assert done.returncode != 0
    assert "no modules" in done.stderr


def test_clean_takes_what_root_has_left(place: Path) -> None:
    """Checks run as root: where the user's own rm may not, sudo's does."""
    if os.geteuid() != 0:
        pytest.skip("only root can leave what a user cannot remove")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        tree = Path(shutil.copytree(place, f"{folder}/tree"))
        (tree / "sudo").write_text("#!/bin/sh\ntouch asked\n")
        (tree / "sudo").chmod(0o755)
        for left in ("build", "build/failed"):
            (tree / left).mkdir(parents=True, exist_ok=True)
            run("chown", "-R", "65534:65534", tree)
            if left == "build/failed":
                (tree / left / "lastfailed").touch()
                run("chown", "-R", "0:0", tree / left)
            user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
            run(*user, "make", "clean", "SUDO=./sudo", folder=tree)
            assert (tree / "asked").exists() == (tree / left).exists() == (left != "build")
