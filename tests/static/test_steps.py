# SPDX-License-Identifier: GPL-2.0-or-later
"""Each step at which tests in the lab do something is one of the product's functions still."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
STEP = re.compile(
    r'["\' ](?P<module>[a-z_]+)\.(?P<function>[A-Za-z_][\w.<>]*) '
    r"(?:ftruncate|ioctl|kill|killpg|listdir|lockf|lstat|open|pidfd_send_signal|poll|posix_spawn"
    r"|pwrite|readlink|recv|rename|sendall|shutdown|stat|symlink|unlink|write)\b"
)
"""As tests/faults/guest/tracer.py makes them."""


def functions(tree: ast.AST, prefix: str = "") -> set[str]:
    """The qualified names of all functions, as Python has them but for comprehensions."""
    found = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(prefix + node.name)
            inner = "." if isinstance(node, ast.ClassDef) else ".<locals>."
            found |= functions(node, prefix + node.name + inner)
        else:
            found |= functions(node, prefix)
    return found


PRODUCT: dict[str, set[str]] = {}
for path in (TOP / "usb_proxy").rglob("*.py"):
    PRODUCT.setdefault(path.stem, set()).update(functions(ast.parse(path.read_text())))
TESTS = [
    path
    for folder in ("faults", "phones", "soak")
    for path in (TOP / "tests" / folder).glob("*.py")
]


@pytest.mark.parametrize("path", TESTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_each_step_is_a_function(path: Path) -> None:
    named = {(m["module"], m["function"]) for m in STEP.finditer(path.read_text())}
    comprehension = re.compile(r"\.<locals>\.<\w+>$")
    unknown = {
        f"{module}.{function}"
        for module, function in named
        if comprehension.sub("", function) not in PRODUCT.get(module, ())
    }
    assert unknown == set()


def test_there_are_steps() -> None:
    found = STEP.findall((TOP / "tests/faults/steps.py").read_text())
    assert len(found) > 150
