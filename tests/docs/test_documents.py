# SPDX-License-Identifier: GPL-2.0-or-later
"""What can be said of the documents without a lab: links, targets, pictures, and who runs what."""

import re
from pathlib import Path

import pytest

from . import picture
from .documents import ALL, DOCUMENTS, LAB, LAB_DOCUMENTS, NOT_RUN, TOP, Step

STEPS = [step for steps in ALL.values() for step in steps]


def anchors(path: Path) -> set[str]:
    """What a link into a document may name: its headings, as the web shows them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]*)\)", path.read_text()):
        file, _, anchor = target.partition("#")
        linked = path.parent / file if file else path
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_targets_exist(path: Path) -> None:
    makefile = (TOP / "Makefile").read_text()
    for target in re.findall(
        r"`(?:sudo )?make ([a-z0-9-]+)|^\$ make ([a-z0-9-]+)", path.read_text(), re.MULTILINE
    ):
        assert re.search(rf"^(\S+ )*{''.join(target)}( \S+)*:", makefile, re.MULTILINE), target


def test_every_block_is_of_a_known_kind() -> None:
    for step in STEPS:
        known = ("console", "policy", "udev", "plug", "unplug", "suspend", "text", "python")
        assert step.kind in known, step.place


def test_every_command_is_run_or_says_why_not() -> None:
    """In the lab, by tests/packaging, or listed; and what is listed is in a document."""
    texts = {step.text for step in STEPS if step.kind == "console"}
    assert NOT_RUN.keys() - texts == set()
    for step in STEPS:
        is_run = (
            step.document in LAB_DOCUMENTS
            if step.machine in LAB and step.document != "docs/packagers.md"
            else step.document == "docs/packagers.md"
        )
        assert step.kind != "console" or is_run or step.text in NOT_RUN, step.place


@pytest.mark.parametrize(
    ("output", "printed", "is_right"),
    [
        ([], "", True),
        ([], "noise\n", False),
        (["a ... c"], "a b c\n", True),
        (["a  ..."], "a      b c\n", True),
        (["a  ..."], "a  b  c\n", False),
        (["a  ...  c"], "a     b    c\n", True),
        (["a ... c"], "a b d\n", False),
        (["a", "...", "z"], "a\nb\nc\nz\n", True),
        (["a", "...", "z"], "a\nz\n", True),
        (["a", "...", "z"], "a\nb\n", False),
        (["a.c"], "abc\n", False),
        (["a", "   b"], "a \n\tb\n", True),
    ],
)
def test_outputs_are_compared(output: list[str], printed: str, is_right: bool) -> None:
    step = Step("x.md", 1, "console", "work", False, "true", output)
    assert (step.difference(printed) == "") is is_right


def test_the_picture_is_one_of_the_demonstration() -> None:
    """It was drawn by this code, and shows the steps of today's demonstration."""
    svg = picture.PICTURE.read_text()
    text = picture.text_of(svg)
    assert svg == picture.picture(text)
    source = (TOP / "tests/lab/demo.py").read_text()
    steps = re.findall(r'story\.step\(f?"(.*)"\)', source)
    # Those of the journey stand above those that prepare it.
    steps = [*steps[-2:], *steps[:-2]]
    shown = re.findall(rf"^\[(\d)/{len(steps)}\] (.*)", text, re.MULTILINE)
    assert [number for number, _ in shown] == [str(n + 1) for n in range(len(steps))]
    for step, (_, line) in zip(steps, shown, strict=True):
        assert re.match(".*".join(map(re.escape, re.split(r"\{.*?\}", step))), line)
    assert text.splitlines()[0] == picture.COMMAND
    assert picture.BUILT not in text, "it is a first run's, which says more of the builder"
    assert text.splitlines()[-1] in source
