# SPDX-License-Identifier: GPL-2.0-or-later
"""BUILDER=DIR: the scripts of QubesOS/qubes-builderv2 over a clean clone of this repository.

They run in a root of Debian 13, as the builder's plugins call them, and what they write is built.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.matrix.roots import Kind, Workshop, cached, kind
from tests.packaging.machine import TOP, need, run
from tests.packaging.manifest import Entry, Manifest, of_package

from .conftest import part

SUITE = "trixie"
SCRIPTS = {
    name: f"qubesbuilder/plugins/{name}"
    for name in (
        "fetch/scripts/create-archive",
        "source_rpm/scripts/get-source-info",
        "source_rpm/scripts/generate-spec",
        "source_archlinux/scripts/get-source-info",
        "source_archlinux/scripts/generate-pkgbuild",
        "source_deb/scripts/get-source-info",
        "source_deb/scripts/modify-changelog-for-build",
        "source_deb/scripts/debian-get-packages-list",
    )
}
# Debian has no rpmdevtools: of its spectool, get-source-info asks for Source0 alone.
SPECTOOL = """#!/bin/sh
set -e
test "$1 $2 $3" = '--list-files --source 0'
rpmspec -P "$4" | sed -n 's/^Source0: */Source0: /p'
"""
PLUGINS = "/mnt/builder/qubesbuilder/plugins"
SPECS = {"qubes-usb-proxy": "fc41", "qubes-usb-proxy-dom0": "fc41"}


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """A root with the builder at /mnt/builder, and in /srv/qubes-usb-proxy our own clean clone."""
    builder = part("BUILDER", *SCRIPTS.values())
    need("git")
    folder = tmp_path_factory.mktemp("builder")
    for each in (folder, folder.parent):
        each.chmod(0o755)
    packages = (*kind("build").packages, "devscripts", "gawk", "git", "python3-debian")
    made = Workshop(cached("real", SUITE, Kind(packages)), folder, builder=builder)
    run("git", "-c", f"safe.directory={TOP}/.git", "clone", "-q", TOP, folder / "clean")
    (folder / "bin").mkdir()
    (folder / "bin/spectool").write_text(SPECTOOL)
    (folder / "bin/spectool").chmod(0o755)
    made.run("chown -R user:user /srv")
    yield made
    shutil.rmtree(folder)


def clone(shop: Workshop) -> str:
    """A clean clone to work in: a command that makes it."""
    return "rm -rf qubes-usb-proxy; cp -a clean qubes-usb-proxy; git -C qubes-usb-proxy status -s;"


def build(shop: Workshop, script: str) -> str:
    """Run as an ordinary user what a plugin of the builder runs."""
    environment = {"PATH": "/srv/bin:/usr/bin:/bin:/usr/sbin", "HOME": "/srv", "DEBUG": "0"}
    return shop.run(clone(shop) + script, user="user", **environment)


@pytest.fixture(scope="session")
def own(shop: Workshop) -> Path:
    """What `make packages` makes of the same commit, in the same root."""
    shop.run("cp -a clean own; make -C own packages", user="user", HOME="/srv")
    return shop.folder / "own/dist"


def contents(package: Path) -> Manifest:
    """What it holds, but for the documents that tell of the build."""
    noise = re.compile(r".*/changelog(\.Debian)?\.gz")
    return {
        path: Entry(entry.kind, entry.mode, entry.owner, entry.content)
        for path, entry in of_package(package).items()
        if not noise.fullmatch(path)
    }


@pytest.mark.parametrize("name", SPECS)
def test_rpm(shop: Workshop, own: Path, name: str) -> None:
    """get-source-info, create-archive, generate-spec, and rpmbuild as the builder's mock does."""
    sources, spec = "/srv/qubes-usb-proxy", f"rpm_spec/{name}.spec"
    info = f"{sources}/rpm_spec_{name}.spec"
    build(
        shop,
        f"{PLUGINS}/source_rpm/scripts/get-source-info {sources} {sources}/{spec} {SPECS[name]}\n"
        f"archive=$(tail -n 1 {info}_package_release_name)\n"
        f"{PLUGINS}/fetch/scripts/create-archive {sources} $archive\n"
        f"{PLUGINS}/source_rpm/scripts/generate-spec {sources} {sources}/{spec}.in"
        f" {sources}/{spec}\n"
        f"rpmbuild -ba --nodeps --define '_topdir /srv/rpm-{name}' --define '_sourcedir {sources}'"
        f" --define 'dist .{SPECS[name]}' --define 'source_date_epoch_from_changelog 1'"
        " --define 'use_source_date_epoch_as_buildtime 1'"
        f" --define 'clamp_mtime_to_source_date_epoch 1' {sources}/{spec}",
    )
    told = (shop.folder / f"qubes-usb-proxy/rpm_spec_{name}.spec_packages.list").read_text()
    (made,) = (shop.folder / f"rpm-{name}/RPMS/noarch").iterdir()
    assert made.name in told.split()
    version = (TOP / "version").read_text().strip()
    assert made.name == f"{name}-{version}-1.{SPECS[name]}.noarch.rpm"
    (ours,) = own.glob(f"{name}-[0-9]*.rpm")
    assert contents(made) == contents(ours)


def test_arch(shop: Workshop, own: Path) -> None:
    """get-source-info, create-archive, generate-pkgbuild, and makepkg."""
    sources, version = "/srv/qubes-usb-proxy", (TOP / "version").read_text().strip()
    build(
        shop,
        f"{PLUGINS}/source_archlinux/scripts/get-source-info {sources} {sources}/archlinux\n"
        f"{PLUGINS}/fetch/scripts/create-archive {sources} qubes-usb-proxy-{version}-1.tar.gz\n"
        f"{PLUGINS}/source_archlinux/scripts/generate-pkgbuild {sources}/archlinux/PKGBUILD.in"
        f" {sources}/PKGBUILD {version} 1\n"
        f"cd {sources}; PKGEXT=.pkg.tar.zst makepkg --nodeps --noconfirm --skipinteg",
    )
    told = (shop.folder / "qubes-usb-proxy/archlinux_packages.list").read_text()
    assert told.split() == ["qubes-usb-proxy"]
    (made,) = (shop.folder / "qubes-usb-proxy").glob("*.pkg.tar.zst")
    assert made.name == f"qubes-usb-proxy-{version}-1-any.pkg.tar.zst"
    (ours,) = own.glob("*.pkg.tar.zst")
    assert contents(made) == contents(ours)


@pytest.mark.parametrize(("suite", "tag"), [("bookworm", "deb12u"), ("trixie", "deb13u")])
def test_deb(shop: Workshop, own: Path, suite: str, tag: str) -> None:
    """modify-changelog-for-build, get-source-info, debian-get-packages-list, and the build."""
    version = (TOP / "version").read_text().strip()
    name = f"qubes-usb-proxy_{version}+{tag}1"
    tree = f"/srv/{suite}/{name.replace('_', '-')}"
    sources = "/srv/qubes-usb-proxy"
    build(
        shop,
        f"export DEBFULLNAME=builder DEBEMAIL=builder@localhost\n"
        f"{PLUGINS}/source_deb/scripts/modify-changelog-for-build {sources} debian"
        f" {suite} {tag} ''\n"
        f"{PLUGINS}/source_deb/scripts/get-source-info {sources} debian\n"
        f"mkdir -p {tree}; cp -a {sources}/* {tree}; cd {tree}\n"
        "chmod -R -- u+rwX,g+rX-w,o+rX-w .; chmod +x debian/rules\n"
        f"dpkg-source -b .; {PLUGINS}/source_deb/scripts/debian-get-packages-list"
        f" ../{name}.dsc > ../packages.list\n"
        "dpkg-buildpackage -b --no-sign",
    )
    told = (shop.folder / "qubes-usb-proxy/debian_package_release_name").read_text().split()
    # Its parser calls all that is before a hyphen the upstream version; a native one has none.
    assert told == [name, name, "native"]
    (made,) = (shop.folder / suite).glob("*.deb")
    assert made.name == f"{name}_all.deb"
    assert made.name in (shop.folder / suite / "packages.list").read_text().split()
    (ours,) = own.glob("qubes-usb-proxy_*.deb")
    assert contents(made) == contents(ours)
