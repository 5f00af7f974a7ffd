# SPDX-License-Identifier: GPL-2.0-or-later
"""`make release-check` notices what is missing for a release."""

import re
import shutil
from pathlib import Path

import pytest

from tests import release

from .conftest import KEY
from .machine import TOP, run


@pytest.fixture
def place(tree: Path, tmp_path: Path) -> Path:
    """A clean checkout, ready but for its signed tag."""
    top = tmp_path / "tree"
    shutil.copytree(tree, top, ignore=shutil.ignore_patterns("build", "dist", "MANIFEST"))
    git(top, "init", "--quiet")
    git(top, "add", ".")
    git(top, "commit", "--quiet", "--message", "All of it")
    return top


def git(top: Path, *command: str) -> None:
    run("git", "-c", "user.name=T", "-c", "user.email=t@localhost", *command, folder=top)


def test_a_clean_tree(place: Path) -> None:
    assert list(release.check_changelog(place)) == []
    assert list(release.check_tree(place)) == []


def test_versions_that_differ(place: Path) -> None:
    (place / "version").write_text("9.9.9\n")
    assert "9.9.9" in next(release.check_changelog(place))


def test_what_is_uncommitted_or_lies_about(place: Path) -> None:
    (place / "own.txt").write_text("x")
    assert "own.txt" in next(release.check_tree(place))
    (place / "own.txt").unlink()
    (place / "docs/troubleshooting.md").write_text("old\n")
    git(place, "commit", "--quiet", "--all", "--message", "An old page")
    assert "docs/troubleshooting.md" in next(release.check_tree(place))


def test_a_tag_that_is_missing_or_not_signed(place: Path) -> None:
    assert "does not mark" in next(release.check_tag(place))
    git(place, "tag", "--annotate", "--message", "x", f"v{release.version_of(place)}")
    assert "verify-tag" in next(release.check_tag(place))


def test_signatures(tree: Path, dist: Path, keys: Path, tmp_path: Path) -> None:
    """Those of a key that `make repo` made for itself are none."""
    (found,) = release.check_signatures(tree)
    assert "throw-away" in found
    repo = f"REPO={tmp_path}/dist/repo"
    run("make", "repo", f"KEY={KEY}", repo, folder=tree, GNUPGHOME=str(keys))
    assert list(release.check_signatures(tmp_path)) == []
    for package in dist.glob("qubes-usb-proxy-4*.rpm"):
        shutil.copy(package, tmp_path / "dist/repo/dnf")
    (found,) = release.check_signatures(tmp_path)
    assert "rpmkeys" in found
    shutil.rmtree(tmp_path / "dist")
    assert "make repo" in next(release.check_signatures(tmp_path))


def test_packages_of_another_build(tree: Path, dist: Path, tmp_path: Path) -> None:
    """An rpm is the same with a signature and without."""
    assert list(release.check_same(tree, dist)) == []
    other = Path(shutil.copytree(dist, tmp_path / "other"))
    (deb,) = other.glob("qubes-usb-proxy_*.deb")
    deb.write_bytes(b"other")
    (rpm,) = other.glob("qubes-usb-proxy-dom0-4*.rpm")
    rpm.unlink()
    found = set(release.check_same(tree, other))
    assert found == {f"dist/repo has another {path.name}" for path in (deb, rpm)}


def test_the_checklist_is_the_documents() -> None:
    numbers = re.findall(r"^(\d+)\. ", (TOP / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert sorted(map(int, numbers)) == sorted({*release.LEFT, *release.CHECKS})
