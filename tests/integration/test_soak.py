# SPDX-License-Identifier: GPL-2.0-or-later
"""A few cycles of what `make soak` does for hours."""

import pytest

from tests.lab.qubes import Qubes
from tests.soak.soak import Limits, Soak


@pytest.mark.long
def test_a_few_cycles(qubes: Qubes) -> None:
    soak = Soak(qubes, 5, print, "super serial")
    assert soak.run(Limits(cycles=5, seconds=600)) == [], soak.report()
    assert soak.cycles == 5
