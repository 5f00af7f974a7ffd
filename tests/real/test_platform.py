# SPDX-License-Identifier: GPL-2.0-or-later
"""`PLATFORM=DIR`: the qubes' programs over real qrexec and QubesDB, in the benchmark's guest.

DIR is a tree as the platform's packages install it, for a vchan of sockets: see CONTRIBUTING.md.
"""

import os
from collections.abc import Iterator

import pytest

from tests.bench import machine
from tests.bench.inside import alike, real

pytestmark = pytest.mark.skipif(
    not os.environ.get("PLATFORM"), reason="not run: PLATFORM=DIR is not given"
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[machine.Bench]:
    trees = {"ours": machine.install(tmp_path_factory.mktemp("tree"))}
    with machine.running(trees, "bookworm", print, machine.real_platform()) as bench:
        yield bench


@pytest.fixture(scope="module")
def found(bench: machine.Bench) -> dict[str, str]:
    return bench.cases("tests.bench.inside.real", progress=print)


@pytest.fixture(scope="module")
def answers(bench: machine.Bench) -> dict[str, str]:
    return bench.cases("tests.bench.inside.alike", progress=print)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", [case.__name__ for case in real.CASES])
def test_it_holds_on_the_real_platform(found: dict[str, str], case: str) -> None:
    assert not found[case], found[case]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("question", alike.QUESTIONS)
def test_the_stand_ins_answer_as_the_real_ones(answers: dict[str, str], question: str) -> None:
    assert not answers[question], answers[question]
