# SPDX-License-Identifier: GPL-2.0-or-later
"""That the benchmark runs; what it measures is nobody's test."""

from pathlib import Path

from tests.bench import dom0


def test_the_benchmark_runs(tmp_path: Path) -> None:
    ids = tmp_path / "usb.ids"
    ids.write_text("1050  Yubico\n\t0407  YubiKey\n\nC 00  end\n")
    found = dom0.measure(ids)
    assert all(found.values())
    assert "dom0: listing 100 devices, ms" in found
