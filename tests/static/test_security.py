# SPDX-License-Identifier: GPL-2.0-or-later
"""What SECURITY.md names as proof exists."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
TEXT = (TESTS.parent / "SECURITY.md").read_text()
NAMED = sorted(set(re.findall(r"`(test_\w+)`", TEXT)))
LISTS = re.findall(r"fuzz targets? ((?:`\w+`(?:, | and )?)+)", TEXT)


def test_something_is_named() -> None:
    assert len(NAMED) > 30
    assert len(LISTS) > 3


@pytest.mark.parametrize("name", NAMED)
def test_a_named_test_exists(name: str) -> None:
    definition = f"def {name}("
    assert any(definition in path.read_text() for path in TESTS.rglob("test_*.py"))


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(\w+)`", " ".join(LISTS)))))
def test_a_named_target_exists(name: str) -> None:
    assert (TESTS / "fuzz/corpus" / name).is_dir()
