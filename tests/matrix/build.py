# SPDX-License-Identifier: GPL-2.0-or-later
"""All packages, built in a root of a suite; and what is like the package of before."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.packaging.test_install import LINK, PATHS_OF_4_3, stub_files

from .roots import Workshop, cached

PATTERNS = {
    "deb": "qubes-usb-proxy_*.deb",
    "dom0-deb": "qubes-usb-proxy-dom0_*.deb",
    "rpm": "qubes-usb-proxy-[0-9]*.rpm",
    "dom0-rpm": "qubes-usb-proxy-dom0-*.rpm",
    "arch": "*.pkg.tar.zst",
    "source": "*.dsc",
    "tarball": "*.tar.gz",
}
OLD = "4.3.6"
SPEC = """Name: {name}
Version: 4.3.6
Release: 1
Summary: stub
License: none
BuildArch: noarch
%description
stub
%files
{files}
"""
PKGINFO = f"pkgname = qubes-usb-proxy\npkgver = {OLD}-1\narch = any\nsize = 1\nbuilddate = 1\n"


@dataclass(frozen=True)
class Built:
    """What a suite has built, below a folder."""

    suite: str
    folder: Path

    @property
    def workshop(self) -> Workshop:
        """Where it was built: the sources are /srv/sources."""
        return Workshop(cached("build", self.suite), self.folder)

    @property
    def dist(self) -> Path:
        return self.folder / "sources/dist"

    def package(self, form: str) -> Path:
        """One package, or the source package, or the tarball."""
        (path,) = self.dist.glob(PATTERNS[form])
        return path

    def old(self, form: str) -> Path:
        """What has the files of 4.3.6, each a stub."""
        (path,) = (self.folder / "old").rglob({**PATTERNS, "arch": "*.pkg.tar.gz"}[form])
        return path

    def hashes(self, dist: Path | None = None) -> dict[str, str]:
        return {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in (dist or self.dist).iterdir()
            if path.is_file()
        }


def build(suite: str, tarball: Path, folder: Path) -> str | None:
    """Run `make packages` as root and write the old packages; returns what failed, or None."""
    shutil.rmtree(folder, ignore_errors=True)
    shop = Workshop(cached("build", suite), folder)
    shutil.copy(tarball, folder / "sources.tar.gz")
    unpack(shop, "sources")
    for script in ("make -C sources packages", old_packages(folder)):
        done = shop.attempt(script)
        if done.returncode:
            said = f"{done.stdout[-3000:]}{done.stderr[-1000:]}"
            return f"{suite}: {script}: {done.returncode}\n{said}"
    return None


def unpack(shop: Workshop, folder: str, owner: str = "root") -> None:
    """The tarball's sources, in a folder of that name."""
    shop.run(
        'mkdir "$1"; tar -C "$1" --strip-components=1 -xf sources.tar.gz; chown -R "$2:$2" "$1"',
        folder,
        owner,
    )


def old_packages(folder: Path) -> str:
    """Writes the files of 4.3.6, and gives the script that makes packages of them."""
    tree = folder / "old/tree"
    stub_files(tree)
    (tree / "etc/qubes/rpc-config/qubes.USB").write_text("force-user='root'\n")
    (folder / "old/PKGINFO").write_text(PKGINFO)
    (folder / "old/old.spec").write_text(
        SPEC.format(name="qubes-usb-proxy", files="\n".join([*PATHS_OF_4_3, f"/{LINK}"]))
    )
    (folder / "old/control").write_text(
        f"Package: qubes-usb-proxy\nVersion: {OLD}\nArchitecture: all\n"
        "Maintainer: Test <t@localhost>\nDescription: stub\n"
    )
    conffiles = [f"{path}\n" for path in PATHS_OF_4_3 if path.startswith("/etc")]
    (folder / "old/conffiles").write_text("".join(conffiles))
    return """
        cd old
        cp -a tree rpm
        rpmbuild -bb --nodeps --quiet --define '_topdir /srv/old' --buildroot /srv/old/rpm old.spec
        cp -a tree arch
        cp PKGINFO arch/.PKGINFO
        bsdtar -C arch -czf old.pkg.tar.gz --uid=0 --gid=0 .PKGINFO etc usr
        mkdir tree/DEBIAN
        cp control conffiles tree/DEBIAN
        dpkg-deb --build --root-owner-group tree .
    """
