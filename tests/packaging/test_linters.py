# SPDX-License-Identifier: GPL-2.0-or-later
"""Each distribution's linter, with nothing to say."""

import re
from pathlib import Path

import pytest

from .machine import TOP, Root, attempt, cached_root, need, run

HERE = Path(__file__).parent
OF_LATER_POLICY = "--suppress-tags=out-of-date-standards-version"
"""A source that Debian 12 builds names the policy of then."""
OF_STDEB = "--suppress-tags=initial-upload-closes-no-bugs"
"""It writes the changelog of the dom0 deb."""


def test_lintian(packages: dict[str, Path], dist: Path) -> None:
    need("lintian")
    (source,) = dist.glob("*.dsc")
    for files, more in (
        ([source, packages["deb"]], OF_LATER_POLICY),
        ([packages["dom0-deb"]], OF_STDEB),
    ):
        options = ["-EviI", "--pedantic", "--fail-on=none", "--allow-root"]
        said = attempt("lintian", *options, more, *files).stdout
        assert [line for line in said.splitlines() if not line.startswith("N:")] == []


def test_rpmlint(packages: dict[str, Path], tree: Path) -> None:
    need("rpmlint")
    specs = list((tree / "build/rpm_spec").glob("*.spec"))
    assert len(specs) == 2
    said = attempt(
        "rpmlint", f"--config={HERE}/rpmlint.toml", *specs, packages["rpm"], packages["dom0-rpm"]
    ).stdout
    assert re.findall(r"^.*: [EWI]: .*$", said, re.MULTILINE) == []
    assert "0 errors, 0 warnings" in said


def test_namcaps_rules(packages: dict[str, Path]) -> None:
    """namcap is in no archive of Debian, so what it would say is asked by hand."""
    info = run("bsdtar", "-xOf", packages["arch"], ".PKGINFO")
    names = run("bsdtar", "-tf", packages["arch"]).split()
    assert "\nlicense = GPL-2.0-or-later\n" in info
    assert "\narch = any\n" in info
    assert "\ndepend = python\n" in info
    assert "\nurl = https://" in info
    assert "usr/share/licenses/qubes-usb-proxy/LICENSE" in names
    assert not [name for name in names if re.match(r"usr/(local|libexec|info|share/info)/", name)]
    assert not [name for name in names if name.startswith(("bin/", "sbin/", "lib/", "usr/sbin/"))]
    assert not re.search(r"pkgdesc = (an?|the|qubes-usb-proxy) ", info, re.IGNORECASE)


def test_pkgbuild(tree: Path, dist: Path) -> None:
    need("shellcheck")
    done = attempt(
        "shellcheck",
        "--shell=bash",
        "--exclude=SC2034,SC2154,SC2164",
        tree / "build/archlinux/PKGBUILD",
        tree / "archlinux/PKGBUILD.install",
    )
    assert done.stdout == ""


@pytest.mark.parametrize("folder", ["programs", "qubes-rpc", "debian/tests"])
def test_checkbashisms(folder: str) -> None:
    need("checkbashisms")
    for path in (TOP / folder).iterdir():
        if path.read_bytes().startswith(b"#!/bin/sh"):
            run("checkbashisms", "--posix", path)


def test_man_pages(tmp_path: Path) -> None:
    need("mandoc", "makewhatis")
    run("make", "install-vm", f"DESTDIR={tmp_path}")
    pages = sorted((TOP / "man").iterdir())
    manual = tmp_path / "usr/share/man"
    run("makewhatis", manual)
    done = attempt(
        "mandoc", "-Tlint", "-Wstyle", *pages, environment={"MANPATH": f"{manual}:/usr/share/man"}
    )
    said = [line for line in (done.stdout + done.stderr).splitlines() if "mandoc.db" not in line]
    other = re.compile(r"referenced manual not found: Xr (sudo 8|pkexec 1|qvm-usb 1)")  # others'
    assert [line for line in said if not other.search(line)] == []


def test_man_pages_know_the_programs() -> None:
    """What they say of exit codes, files and services is so."""
    overview = (TOP / "man/qubes-usb-proxy.7").read_text()
    for service in (TOP / "qubes-rpc").glob("qubes.USB*"):
        if service.suffix != ".config":
            assert f".It Ic {service.name}\n" in overview
    for page in (TOP / "man").glob("*.8"):
        assert (TOP / "programs" / page.stem).exists()


def test_udev_rules() -> None:
    root = Root(cached_root("trixie"))
    for rules in (TOP / "udev").iterdir():
        target = root.folder / "tmp" / rules.name
        target.write_bytes(rules.read_bytes())
        root.run("udevadm", "verify", f"/tmp/{rules.name}")
