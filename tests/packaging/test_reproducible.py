# SPDX-License-Identifier: GPL-2.0-or-later
"""Two builds under other conditions are the same, byte for byte."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .machine import run
from .test_make import HOSTILE


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.is_file()
    }


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder that other accounts reach: pytest closes its own to them."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        folder = Path(name) / "a folder, *"
        folder.mkdir()
        folder.chmod(0o2755)
        yield folder


def test_other_folder_time_umask_and_account(dist: Path, elsewhere: Path) -> None:
    """From the tarball, without git, as nobody."""
    (tarball,) = dist.glob("*.tar.gz")
    run("tar", "-C", elsewhere, "-xf", tarball)
    (sources,) = elsewhere.iterdir()
    for path in sources.rglob("*"):
        os.utime(path, (1700000000, 1700000000))
    home = sources / "build/home"
    home.mkdir(parents=True)
    (home / ".rpmmacros").write_text("%packager somebody\n%dist .own\n%vendor somebody\n")
    (home / ".makepkg.conf").write_text("PACKAGER='somebody <s@localhost>'\n")
    (home / ".pydistutils.cfg").write_text("[install]\nprefix=/opt\n")
    build = ["sh", "-c", "umask 077 && exec make packages"]
    if os.geteuid() == 0:
        run("chown", "-R", "65534:65534", elsewhere)
        build = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *build]
    run(
        *build,
        folder=sources,
        **HOSTILE | {"HOME": str(home)},
    )
    assert hashes(sources / "dist") == hashes(dist)
