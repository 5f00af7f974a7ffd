# SPDX-License-Identifier: GPL-2.0-or-later
"""Each step at which tests in the lab do something is in a public function of the product still."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
STEP = re.compile(
    r'["\' ](?P<module>[a-z_]+)\.(?P<function>[A-Za-z_][\w.]*) '
    r"(?:ftruncate|ioctl|kill|killpg|listdir|lockf|lstat|open|pidfd_send_signal|poll|posix_spawn"
    r"|pwrite|readlink|recv|rename|sendall|shutdown|stat|symlink|unlink|write)\b"
)
"""As tests/faults/guest/tracer.py makes them."""


def functions(tree: ast.AST, prefix: str = "") -> set[str]:
    """The qualified names of functions, without what is private or within another."""
    found = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            found |= functions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef) and not re.match("_(?!_)", node.name):
            found.add(prefix + node.name)
    return found


PRODUCT: dict[str, set[str]] = {}
for path in (TOP / "usb_proxy").rglob("*.py"):
    PRODUCT.setdefault(path.stem, set()).update(functions(ast.parse(path.read_text())))
TESTS = [
    TOP / "tests/faults/steps.json",
    *(
        path
        for folder in ("faults", "phones", "soak")
        for path in (TOP / "tests" / folder).glob("*.py")
    ),
]


@pytest.mark.parametrize("path", TESTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_each_step_is_in_a_public_function(path: Path) -> None:
    named = {(m["module"], m["function"]) for m in STEP.finditer(path.read_text())}
    assert {each for each in named if each[1] not in PRODUCT.get(each[0], ())} == set()


def test_there_are_steps() -> None:
    assert len(STEP.findall(TESTS[0].read_text())) > 150
