# SPDX-License-Identifier: GPL-2.0-or-later
"""The words that a user reads: `proselint`, and the habits that this project has given up.

`proselint.json` turns two checks off, since both read our commands and their output, not our prose:
`typography` wants curly quotes in what has to be typed, and `lexical_illusions` takes
`device DEVICE` and the name `QEMU QEMU` for words that were written twice.
"""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
CONFIG = Path(__file__).with_name("proselint.json")
PROSE = [*(TOP / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY"))]
PROSE += sorted((TOP / "docs").glob("*.md"))
READ = [*PROSE, *sorted((TOP / "man").iterdir()), *sorted((TOP / "polkit").iterdir())]
READ += [TOP / "debian/changelog", *sorted((TOP / "policy").iterdir())]
READ += [TOP / "debian/control", *sorted((TOP / "rpm_spec").iterdir()), TOP / "setup.py"]
READ += [TOP / "archlinux/PKGBUILD.in", *sorted((TOP / "completion").iterdir())]
PROGRAM = sorted((TOP / "usb_proxy").rglob("*.py"))

HABITS = {
    r"(?<!sudo )\bjournalctl -": "sudo journalctl: a user who is not root sees nothing of ours",
    r"\banew\b": "again",
    r"\b[Ss]hall\b": "should, or will",
    r"\b[Ll]eave (?:[\w`-]+ ){0,3}away\b": "leave out",
    r"\b(?:those )?that there are\b": "lists the …",
    r"\b[Tt]hose that are(?: not)?[.;]": "the noun",
    r"\bblank\b": "space",
    r"\b[Ww]ho is (?:no root|not root) is\b": "a user who is not root",
    r"(?<=[.;] )Who (?:is|was|has|wants|needs|starts|waits)\b": "a user who, a program that",
    r"(?<=[.;] )What (?:is|was|has|fails|waits|needs|runs|you|qubes)\b": "the noun first",
    r"(?<=[.;] )(?:What (?:nobody|somebody|dom0|it)|Which \w+ (?:has|is|was)|Whether|That the)\b": (
        "the noun, or who does it, first"
    ),
    r"\b(?:Whoever|Such as (?:are|have|is))\b": "a user who, those that",
    r"(?<=[.;:] )(?:Only then|Never|Nor|In no case|So) (?:is|are|has|have|does|do|may)\b": (
        "the subject first"
    ),
    r"(?<=[.;:] )Not until\b": "only when, after",
    r"(?<=[.;:] )(?:Should|Were|Had) (?:the|it|this|a)\b": "if",
    r"\b[Oo]f (?:these|those|them) (?:none|nothing|all|one)\b": "none of these",
    r"\bnone is\b": "is not any, or the noun",
    r"(?<=[.;] )To each [\w ]+ (?:there )?belongs\b": "each … has",
    r"\bthat there (?:is|was) (?:a|no)\b": "that has a, without a",
    r"\b(?:is|are) told\b": "dom0 says, it learns, hears",
    r"\btold of\b": "the verb: announced, informed",
    r"\b(?:is|are|was|were) to be \w+ed\b": "should be, has to be; or the active voice",
    r"\b(?:is|are) (?:given back|taken|said|done) that (?:was|were|is)\b": "what was …",
    r"\b(?:where|there)(?:by|fore|of|upon|with)\b(?<!therefore)": "so, with it",
    r"\b(?:[Tt]hus|[Hh]ence|whilst|lest|merely|solely|hitherto)\b": "so, only",
    r"(?<=[.;] )Where (?:it|that|there|all|no|your|several)\b": "if",
    r"(?<![Tt]here )\bis no (?!longer\b|more\b|other\b|wider\b)": "is not a",
    r"\bothers than\b": "users other than, devices other than",
    r"\bcan (?:call|take|have) no other\b": "cannot … another",
    r"\bfor want of\b": "because … ran out",
    r"\btells? (?:of|by|more)\b": "says, names",
    r"\b(?:did|does|do) not come about\b": "failed",
    r"\b(?:and|or) the like\b": "such as",
    r"\b(?:behavior|catalog|center|color|favor|honor)\b": "the British spelling",
}
"""What was written here once, as regular expressions, and what to write instead."""


def plain(text: str) -> str:
    """Text in one line, without comments and macros of mdoc(7) and the marks of other formats."""
    text = text.replace("*", "")
    lines = (line for line in text.splitlines() if not line.startswith((r".\"", "<!-- ")))
    marks = r"^ *(?:[-#>|] |\.[A-Z][a-z]\b)"
    return " ".join(" ".join(re.sub(marks, "", line) for line in lines).split())


def habits(text: str) -> list[str]:
    """Each habit that a text has, with what to write instead."""
    text = f". {text}"  # which begins with a sentence
    return [
        f"…{text[max(0, found.start() - 40) : found.end() + 20]}…: {instead}"
        for habit, instead in HABITS.items()
        for found in re.finditer(habit, text)
    ]


@pytest.mark.parametrize("path", PROSE, ids=lambda path: path.name)
def test_proselint(path: Path) -> None:
    if importlib.util.find_spec("proselint") is None:
        pytest.skip("proselint is not installed")
    command = [sys.executable, "-m", "proselint", "check", "--config", str(CONFIG), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", READ, ids=lambda path: path.name)
def test_a_page_has_no_old_habit(path: Path) -> None:
    assert habits(plain(path.read_text())) == []


def texts(path: Path) -> list[str]:
    """The text of a module that is no docstring: what it may say, its fields as `{}`."""
    found, silent = [], set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Expr | ast.JoinedStr):
            inner = {each for each in ast.walk(node) if isinstance(each, ast.Constant)}
            silent |= inner if isinstance(node, ast.JoinedStr) or node.value in inner else set()
        if isinstance(node, ast.JoinedStr):
            parts = (
                str(each.value) if isinstance(each, ast.Constant) else "{}" for each in node.values
            )
            found.append("".join(parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in silent:
            found.append(node.value)
    return found


@pytest.mark.parametrize("path", PROGRAM, ids=lambda path: str(path.relative_to(TOP)))
def test_the_program_says_no_old_habit(path: Path) -> None:
    assert [found for text in texts(path) for found in habits(text)] == []


@pytest.mark.parametrize(
    "text",
    [
        "`journalctl -t qubes-usb-proxy` says more.",
        "Set the feature anew.",
        "Name the qube that shall have it.",
        "Leave `-o` away.",
        "'qvm-usb list' shows those that there are",
        "Write both, with a blank between.",
        "It ends. Who is not root is asked for a password.",
        "It works. What fails because of it is tried again.",
        "QREXEC_AGENT_PID is no process",
        "The second fails for want of memory.",
        "The journal tells more.",
        "others than root may write it",
        "it is full and can take no other",
        "dom0 is told that the device has gone.",
        "The device was told of.",
        "Several match. Of these none is attached.",
        "The device settles. Only then is it attached.",
        "It holds the lock. Never has it polled.",
        "A device that there is no driver for stays free.",
        "It works. What nobody asked for is never attached.",
        "Look. Should the device vanish, plug it in again.",
        "It may. Were the port free, the attach would go on.",
        "The device is to be detached first.",
        "Ask root. Whoever is root may do it.",
        "It has gone. Whether it runs, the doctor says.",
        "It waits. Not until the reset is done does it return.",
        "It holds. Which qube has it is shown by status.",
        "All is given back that was taken.",
        "- **A kind.** What was announced gets a driver.",
        "  * It works.\n  * What is attached stays.",
        "# It is denied.\n# Who has a rule may.",
    ],
)
def test_an_old_habit_is_found(text: str) -> None:
    assert habits(plain(text))


def test_proselint_finds_something(tmp_path: Path) -> None:
    """With our configuration, so that an empty answer means something."""
    if importlib.util.find_spec("proselint") is None:
        pytest.skip("proselint is not installed")
    page = tmp_path / "page.md"
    page.write_text("Keep an eye on the device; it is very unique.\n")
    command = [sys.executable, "-m", "proselint", "check", "--config", str(CONFIG), str(page)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "page.md:1:" in done.stdout, done.stdout + done.stderr
