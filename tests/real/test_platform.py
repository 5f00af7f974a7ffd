# SPDX-License-Identifier: GPL-2.0-or-later
"""`PLATFORM=DIR`: the qubes' programs over real qrexec and QubesDB, in the benchmark's guest.

DIR is a tree as the platform's packages install it, for a vchan of sockets: see CONTRIBUTING.md.
"""

import os
from pathlib import Path
from types import ModuleType

import pytest

from tests.bench import machine
from tests.bench.inside import alike, real

pytestmark = pytest.mark.skipif(
    not os.environ.get("PLATFORM"), reason="not run: PLATFORM=DIR is not given"
)


def run(module: ModuleType, tree: Path) -> dict[str, str]:
    """What was wrong with each case of a module, in a guest of its own: one leaves much behind."""
    trees = {"ours": machine.install(tree)}
    with machine.running(trees, "bookworm", print, machine.real_platform()) as bench:
        return bench.cases(module.__name__, progress=print)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return run(real, tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return run(alike, tmp_path_factory.mktemp("tree"))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", [case.__name__ for case in real.CASES])
def test_it_holds_on_the_real_platform(found: dict[str, str], case: str) -> None:
    assert not found[case], found[case]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("question", alike.QUESTIONS)
def test_the_stand_ins_answer_as_the_real_ones(answers: dict[str, str], question: str) -> None:
    assert not answers[question], answers[question]
