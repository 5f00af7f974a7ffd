# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands in the documents, with what they are said to print.

A block of `console` has commands after a prompt, `MACHINE$` or, as root, `MACHINE#`, and their
output. There `...` stands for any lines, or within one for a part without a gap between columns;
how wide such a gap is does not count. A block of `policy` is dom0's rules,
one of `udev` those of sys-usb. A comment `<!-- lab: ... -->` is done before what follows and not
shown: a command with its prompt, `plug the stick`, `unplug the stick` or `suspend`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

TOP = Path(__file__).parents[2]
DOCUMENTS = [*(TOP / name for name in ("README.md", "CONTRIBUTING.md", "tests/lab/README.md"))]
DOCUMENTS += sorted((TOP / "docs").glob("*.md"))

PROMPT = re.compile(r"([a-z][a-z0-9-]*)?([$#]) (.+)")


@dataclass
class Step:
    """Something to do: a command, or with another `kind` than `console` a whole block."""

    document: str
    line: int
    kind: str
    machine: str
    is_root: bool
    text: str
    output: list[str] = field(default_factory=list)
    is_shown: bool = True

    @property
    def place(self) -> str:
        """Where it stands."""
        return f"{self.document}:{self.line}"

    def difference(self, printed: str) -> str:
        """What is wrong with what was printed, or nothing."""
        lines = ["(?:.*\n)*" if line == "..." else _pattern(line) for line in self.output]
        text = "".join(f"{_narrow(line)}\n" for line in printed.splitlines())
        if not self.is_shown or re.fullmatch("".join(lines), text):
            return ""
        expected = "\n".join(self.output)
        return f"{self.place}: {self.text}\n--- the document says\n{expected}\n--- seen\n{text}"


def _narrow(line: str) -> str:
    """A line with the smallest gaps between its columns."""
    return re.sub(" {2,}", "  ", line.expandtabs().rstrip())


def _pattern(line: str) -> str:
    """What matches a line."""
    return "(?:(?!  ).)*".join(map(re.escape, _narrow(line).split("..."))) + "\n"


def command(place: tuple[str, int], text: str) -> Step:
    """The step of a line with a prompt."""
    found = PROMPT.fullmatch(text)
    assert found, f"{place}: no prompt in {text!r}"
    return Step(*place, "console", found[1] or "", found[2] == "#", found[3])


def steps(path: Path) -> Iterator[Step]:
    """What a document says to do, in order."""
    name = str(path.relative_to(TOP))
    language = ""
    block: list[str] = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        hidden = re.fullmatch(r"<!-- lab: (.*) -->", line)
        plugged = hidden and re.fullmatch(r"(plug|unplug) the ([a-z]+)", hidden[1])
        if plugged:
            yield Step(name, number, plugged[1], "sys-usb", True, plugged[2], is_shown=False)
        elif hidden and hidden[1] == "suspend":
            yield Step(name, number, "suspend", "dom0", True, "", is_shown=False)
        elif hidden:
            step = command((name, number), hidden[1])
            step.is_shown = False
            yield step
        elif line.startswith("```") and not language:
            language, block = line[3:] or "nothing", []
        elif line.startswith("```"):
            yield from steps_of_block((name, number - len(block)), language, block)
            language = ""
        elif language:
            block.append(line)


def steps_of_block(place: tuple[str, int], language: str, block: list[str]) -> Iterator[Step]:
    """What a block says to do; `place` is its first line's."""
    name, first = place
    if language != "console":
        machine = {"policy": "dom0", "udev": "sys-usb"}.get(language, "")
        yield Step(name, first, language, machine, True, "\n".join(block) + "\n")
        return
    step = None
    for number, line in enumerate(block, start=first):
        if PROMPT.fullmatch(line):
            if step:
                yield step
            step = command((name, number), line)
        else:
            assert step, f"{name}:{number}: output without a command"
            step.output.append(line)
    if step:
        yield step


ALL = {path: list(steps(path)) for path in DOCUMENTS}
LAB = ("dom0", "work", "sys-usb")
LAB_DOCUMENTS = ("README.md", "docs/users.md", "docs/recipes.md")

NOT_RUN = {
    "sudo apt update": "needs a mirror of Debian",
    "sudo apt install make": "needs a mirror of Debian",
    "make demo": "`make demo-picture` runs it, and the steps in the picture are compared with it",
    "sudo apt install qubes-usb-proxy": "no mirror has it; apt installs it in tests/packaging",
    "sudo dnf install qubes-usb-proxy": "no mirror has it; dnf installs it in tests/packaging",
    "sudo qubes-dom0-update qubes-usb-proxy-dom0": "needs dom0; apt and dnf install it in "
    "tests/packaging",
    "sudo systemctl restart qubesd": "the lab has a model of qubesd, which is no service",
    "systemctl restart qubesd": "tests/packaging has no daemons",
    "make check-packages": "it is what runs these",
    "cp qubes-usb-proxy.repo /etc/yum.repos.d/": "no Fedora here; tests/packaging has dnf use it",
    "dnf install qubes-usb-proxy": "no Fedora here; dnf installs it in tests/packaging",
    "qvm-usb attach work sys-usb:1-6": "the kernels of the lab have no driver of a camera",
    "qvm-usb detach work sys-usb:1-6": "the kernels of the lab have no driver of a camera",
    "adb devices": "the lab's phone has the interface of adb, but does not speak its protocol",
    "qvm-features work usb-auto-attach 'u0701**'": "tests/dom0 sets the feature",
    'qvm-prefs sys-usb kernelopts "$(qvm-prefs sys-usb kernelopts) usbcore.authorized_default=0"': (
        "no dom0 starts the lab's kernels; a hidden command after it does the same"
    ),
    "qvm-usb-doctor --report": "tests/dom0 runs it",
}
"""The commands that no test runs as they stand, and why."""
