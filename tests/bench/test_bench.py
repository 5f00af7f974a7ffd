# SPDX-License-Identifier: GPL-2.0-or-later
"""That every case of the benchmark can be measured; how long it takes is nobody's test."""

import pytest

from . import machine, report
from .__main__ import CASES


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> report.Results:
    tree = machine.install(tmp_path_factory.mktemp("tree"))
    return machine.measure(
        {report.OURS: tree}, CASES, runs=1, count=2, suite="bookworm", progress=print
    )


@pytest.mark.long
def test_every_case_is_measured(bench: report.Results) -> None:
    found = bench[report.OURS]
    assert set(report.AIMS) <= set(found)
    assert all(found.values())
    assert "attach, SuperSpeed" in bench[report.FLOOR]
    print(report.text(bench))


@pytest.mark.long
def test_nothing_runs_while_a_device_is_attached(bench: report.Results) -> None:
    found = bench[report.OURS]
    for name in ("ms of processor time", "wake-ups", "forks"):
        assert found[f"idle for 60 s, {name}"] == [0]
        assert found[f"busy for 60 s, {name}"] == [0]


def test_an_implementation_is_compared_with_another() -> None:
    found = {report.OURS: {"x": [1.0, 2.0, 3.0]}, report.REFERENCE: {"x": [4.0]}}
    assert report.rows(found)[1] == ["x", "2 (1-3)", "", "", "", "", "3", "4", "0.50"]
