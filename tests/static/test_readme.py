# SPDX-License-Identifier: GPL-2.0-or-later
"""What the README says of the program, compared with the program."""

import re
from pathlib import Path

TOP = Path(__file__).parents[2]
README = (TOP / "README.md").read_text()


def test_targets_exist() -> None:
    makefile = (TOP / "Makefile").read_text()
    for target in re.findall(r"make ([a-z][a-z-]+)", README):
        assert f"\n{target}:" in makefile
