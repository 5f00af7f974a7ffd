# SPDX-License-Identifier: GPL-2.0-or-later
"""That the benchmark runs, and what the extension may ask for, and hold up, at most."""

from pathlib import Path

import pytest

from tests.bench import dom0, dom0_calls


def test_the_benchmark_runs(tmp_path: Path) -> None:
    ids = tmp_path / "usb.ids"
    ids.write_text("1050  Yubico\n\t0407  YubiKey\n\nC 00  end\n")
    found = dom0.measure(ids)
    assert all(found.values())
    assert "dom0: listing 100 devices, ms" in found


@pytest.mark.parametrize("qubes", dom0_calls.QUBES)
def test_calls(tmp_path: Path, qubes: int) -> None:
    """A qube that is not concerned costs nothing, but in a list, where each is asked once."""
    found = dom0_calls.counts(tmp_path, qubes)
    devices = dom0_calls.DEVICES
    for what, libvirt, qubesdb in (
        ("appear", 2, 6 * devices),
        ("look", 2, 4 * devices),
        ("list", qubes + 2 * devices, 4 * qubes + 8 * devices),
        ("list beside one that writes", qubes + 2 * devices, 12 * qubes + 8 * devices),
        ("start", 20, 6 * devices),
    ):
        assert found[what][0] <= libvirt, what
        assert found[what][1] <= qubesdb, what


@pytest.mark.parametrize("wanted", [False, True])
def test_a_hostile_qube_does_not_hold_the_loop(tmp_path: Path, wanted: bool) -> None:
    # The best of three: other programs of this machine run, too.
    runs = [dom0_calls.hostile(tmp_path, 150, 5.0, wanted=wanted) for _ in range(3)]
    assert min(longest for longest, _ in runs) < 0.05
    assert min(share for _, share in runs) < 0.1


def test_a_list_of_a_hostile_qube_is_bounded(tmp_path: Path) -> None:
    """And a list of what has been listed costs next to nothing."""
    first, next_one, libvirt = dom0_calls.listing(tmp_path)
    assert libvirt <= 2, "whether it runs, and whether the one that has them all does"
    assert first < 0.05
    assert next_one < first / 3
