# SPDX-License-Identifier: GPL-2.0-or-later
"""The corpus as plain tests, and a short run of the fuzzer itself."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from usb_proxy.frontend import records

from . import targets
from .all_targets import TARGETS
from .targets import Broken

CORPUS = Path(__file__).parent / "corpus"
RUNS = 2000
"""For each target; counted, so that a busy machine changes nothing."""


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_the_corpus(name: str) -> None:
    inputs = sorted((CORPUS / name).iterdir())
    assert len(inputs) > 1
    for path in inputs:
        assert path.stat().st_size <= 8192
        TARGETS[name](path.read_bytes())


def test_there_is_no_corpus_without_a_target() -> None:
    assert sorted(folder.name for folder in CORPUS.iterdir()) == sorted(TARGETS)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_short_run(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed: there is no wheel of it for this Python")
    options = [f"-runs={RUNS}", "-seed=1", "-max_len=512", f"-artifact_prefix={tmp_path}/"]
    command = [sys.executable, "-m", "tests.fuzz", name, *options, str(tmp_path)]
    done = subprocess.run(
        [*command, str(CORPUS / name)],
        cwd=CORPUS.parents[2],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    reached = re.search(r"#\d+\s+DONE\s+cov: (\d+)", done.stderr)
    assert reached, done.stderr[-2000:]
    assert int(reached[1]) > 1


def test_a_broken_parser_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "printable", lambda *_: "\033")
    with pytest.raises(Broken):
        TARGETS["printable"](b"x")
    monkeypatch.setattr(records, "read", lambda *_: 10**6)
    with pytest.raises(Broken):
        TARGETS["record"](b"x")
