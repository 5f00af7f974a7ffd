# SPDX-License-Identifier: GPL-2.0-or-later
"""What docs/packagers.md tells packagers to type, typed."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.documents import ALL, NOT_RUN, TOP, Step

from .machine import Root, copy_of, need, run

DOCUMENT = TOP / "docs/packagers.md"
URL = "https://example.org/qubes"
KEY = "packager@example.org"
OFFLINE = """
APT::Get::List-Cleanup "0";
APT::Get::Assume-Yes "1";
APT::Install-Recommends "0";
"""


@pytest.fixture
def keys() -> Iterator[Path]:
    """A packager's gpg, with a key; its agent needs a short path."""
    need("gpg")
    with tempfile.TemporaryDirectory(prefix="gpg-") as folder:
        run("gpg", "--batch", "--quiet", "--passphrase", "", "--quick-generate-key", KEY,
            "ed25519", "sign", "never", GNUPGHOME=folder)
        yield Path(folder)
        run("gpgconf", "--kill", "gpg-agent", GNUPGHOME=folder)


def debian_template(repository: Path, folder: Path) -> Root:
    """A root whose apt has no network; the files of the repository are in /srv/repo."""
    folder.mkdir()
    root = copy_of("clean", folder)
    shutil.copytree(repository, root.folder / "srv/repo")
    sources = root.folder / "srv/repo/qubes-usb-proxy.list"
    assert f"] {URL}/apt ./" in sources.read_text()
    sources.write_text(sources.read_text().replace(URL, "file:///srv/repo"))
    (root.folder / "etc/apt/apt.conf.d/90offline").write_text(OFFLINE)
    return root


def template(dist: Path, folder: Path) -> Root:
    """A root with make and Python, and the tarball in /srv."""
    folder.mkdir()
    root = copy_of("full", folder)
    shutil.copy(next(dist.glob("*.tar.gz")), root.folder / "srv")
    return root


def test_what_packagers_type(dist: Path, keys: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    here = tmp_path / "tree"
    shutil.copytree(dist.parent, here, symlinks=True)
    shutil.rmtree(here / "dist/repo")
    roots: dict[str, Root] = {}

    def type_it(step: Step) -> str:
        if step.machine == "":
            # The packages have been made by that very command.
            command = "true" if step.text == "make packages" else step.text
            return run("sh", "-c", command, folder=here, GNUPGHOME=str(keys))
        if step.machine not in roots:
            roots[step.machine] = {
                "debian-template": lambda: debian_template(here / "dist/repo", tmp_path / "debian"),
                "template": lambda: template(here / "dist", tmp_path / "other"),
            }[step.machine]()
        # Of Debian's own lists there is a copy.
        text = step.text.replace("apt update", "apt update -o Dir::Etc::SourceList=/dev/null")
        folder = "/srv/repo" if step.machine == "debian-template" else "/srv"
        return roots[step.machine].run("sh", "-ec", f"cd {folder}; {text}")

    for step in ALL[DOCUMENT]:
        if step.text not in NOT_RUN and step.kind == "console":
            printed = type_it(step)
            assert not step.output or not step.difference(printed)
    for root in roots.values():
        assert root.attempt("/usr/lib/qubes/usb-reset").stderr.endswith("[UP-223]\n")
    assert set(roots) == {"debian-template", "template"}
