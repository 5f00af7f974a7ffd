# SPDX-License-Identifier: GPL-2.0-or-later
"""What is not given is told of, and what is given in vain fails."""

from pathlib import Path

import pytest

from tests.packaging.machine import TOP, need, run

from .conftest import PARTS, part, pytest_report_header


def test_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (None, ""):
        monkeypatch.delenv("BUILDER", raising=False)
        if value is not None:
            monkeypatch.setenv("BUILDER", value)
        with pytest.raises(pytest.skip.Exception, match="not run: BUILDER= was not given"):
            part("BUILDER", "file")


def test_unusable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for folder in (tmp_path / "missing", tmp_path):
        monkeypatch.setenv("BUILDER", str(folder))
        with pytest.raises(pytest.fail.Exception, match="is unusable: no a/file"):
            part("BUILDER", "a/file")
    (tmp_path / "a").mkdir()
    (tmp_path / "a/file").touch()
    assert part("BUILDER", "a/file") == tmp_path


def test_the_revision_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    need("git")
    for name in PARTS:
        monkeypatch.delenv(name, raising=False)
    assert pytest_report_header() == []
    monkeypatch.setenv("BUILDER", str(tmp_path))
    assert pytest_report_header() == [f"BUILDER={tmp_path}, of no known revision"]
    git = ("git", "-C", tmp_path, "-c", "user.name=T", "-c", "user.email=t@localhost")
    (tmp_path / "file").write_text("one\n")
    for command in (["init", "-q"], ["add", "file"], ["commit", "-qm", "One"]):
        run(*git, *command)
    head = run(*git, "rev-parse", "HEAD").strip()
    told = f"BUILDER={tmp_path}, revision {head}"
    assert pytest_report_header() == [told]
    (tmp_path / "file").write_text("two\n")
    assert pytest_report_header() == [f"{told}, changed"]


def test_each_part_of_the_makefile_is_known() -> None:
    (line,) = [x for x in (TOP / "Makefile").read_text().splitlines() if x.startswith("PARTS :=")]
    assert tuple(line.split()[2:]) == PARTS
