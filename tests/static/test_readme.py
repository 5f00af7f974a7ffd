# SPDX-License-Identifier: GPL-2.0-or-later
"""What the README says of the program, compared with the program."""

import ast
import re
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
README = (TOP / "README.md").read_text()
ROWS = re.findall(r"^\| (.+?) \|", README.partition("## Troubleshooting")[2], re.MULTILINE)
SENTENCES = [row for row in ROWS if row not in ("sentence", "---")]


def told() -> list[str]:
    """Every text of the program, with … where it fills something in."""
    texts = []
    for path in (TOP / "usb_proxy").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


@pytest.mark.parametrize("sentence", SENTENCES)
def test_sentence_is_one_of_the_program(sentence: str) -> None:
    pattern = re.compile(".*".join(map(re.escape, sentence.split("…"))))
    assert any(pattern.search(text) for text in told())


def test_targets_exist() -> None:
    makefile = (TOP / "Makefile").read_text()
    for target in re.findall(r"make ([a-z][a-z-]+)", README):
        assert f"\n{target}:" in makefile
