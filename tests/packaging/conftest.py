# SPDX-License-Identifier: GPL-2.0-or-later
"""The packages are built once, in a copy of the sources."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .machine import TOP, attempt, need, run
from .manifest import Manifest, of_folder

KEY = "packager@example.org"


def sources(folder: Path) -> Path:
    """A copy of the files that are the project's, with the list that a tarball has of them."""
    done = attempt("git", "--git-dir=.git", "--work-tree=.", "ls-files")
    listed = done.stdout or (TOP / "MANIFEST").read_text()
    names = [name for name in listed.split() if (TOP / name).exists()]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(TOP / name, folder / name)
    (folder / "MANIFEST").write_text("".join(f"{name}\n" for name in names))
    return folder


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources."""
    need("make", "dpkg-buildpackage", "rpmbuild", "makepkg")
    return sources(tmp_path_factory.mktemp("sources") / "tree")


@pytest.fixture(scope="session")
def dist(tree: Path) -> Path:
    """The folder with all packages, and the repositories of them."""
    run("make", "packages", folder=tree)
    run("make", "repo", folder=tree)
    return tree / "dist"


@pytest.fixture(scope="session")
def packages(dist: Path) -> dict[str, Path]:
    """Each package, by its format."""
    patterns = {
        "deb": "qubes-usb-proxy_*.deb",
        "dom0-deb": "qubes-usb-proxy-dom0_*.deb",
        "rpm": "qubes-usb-proxy-[0-9]*.rpm",
        "dom0-rpm": "qubes-usb-proxy-dom0-*.rpm",
        "arch": "*.pkg.tar.zst",
    }
    found = {}
    for form, pattern in patterns.items():
        (found[form],) = dist.glob(pattern)
    return found


@pytest.fixture(scope="session")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Manifest]:
    """What `make install-vm` and `make install-dom0` write from the unpacked tarball."""
    folder = tmp_path_factory.mktemp("installed")
    (tarball,) = dist.glob("*.tar.gz")
    run("tar", "-C", folder, "-xf", tarball)
    (unpacked,) = folder.iterdir()
    manifests = {}
    for side in ("vm", "dom0"):
        run("make", f"install-{side}", f"DESTDIR={folder}/{side}", folder=unpacked)
        manifests[side] = of_folder(folder / side)
    return manifests


@pytest.fixture
def keys() -> Iterator[Path]:
    """A packager's gpg, with a key; its agent needs a short path."""
    need("gpg")
    with tempfile.TemporaryDirectory(prefix="gpg-") as folder:
        run(
            "gpg",
            "--batch",
            "--quiet",
            "--passphrase",
            "",
            "--quick-generate-key",
            KEY,
            "ed25519",
            "sign",
            "never",
            GNUPGHOME=folder,
        )
        yield Path(folder)
        run("gpgconf", "--kill", "gpg-agent", GNUPGHOME=folder)
