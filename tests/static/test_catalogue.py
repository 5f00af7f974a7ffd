# SPDX-License-Identifier: GPL-2.0-or-later
"""The catalogue of sentences, compared with the program that says them."""

import ast
import re
import string
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.catalogue import GROUPS, PAGES, TOP
from usb_proxy import errors
from usb_proxy.catalogue import ENTRIES, devices, dom0, peers, requests, system

CODES = {kind.__name__: kind.code for kind in errors.UsbProxyError.__subclasses__()}
OF_QUBESD = {"QubesException", "QubesValueError", "DeviceAlreadyAttached", "DeviceNotAssigned"}
OF_QUBESD |= {"UnrecognizedDevice", "ServiceError", "AlreadyAttached", "NotAttached"}
MODULES = {path: ast.parse(path.read_text()) for path in sorted((TOP / "usb_proxy").rglob("*.py"))}
OF_ANY_ERROR = "sentence(self.id, **self.fields)"
"""In errors.py, of which all others are made."""


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """The calls in a tree of functions and classes, with their names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else ""
            yield function.id if isinstance(function, ast.Name) else name, node


def fields(name: str) -> set[str]:
    """What has to be filled into a sentence."""
    return {field for _, field, _, _ in string.Formatter().parse(ENTRIES[name][0]) if field}


def said() -> Iterator[tuple[Path, str, ast.Call]]:
    """Every place where a sentence is made: the module, the function or class, the call."""
    for path, tree in MODULES.items():
        for name, call in calls(tree):
            if (name in CODES or name == "sentence") and ast.unparse(call) != OF_ANY_ERROR:
                yield path, name, call


@pytest.mark.parametrize(
    ("path", "name", "call"),
    [pytest.param(*place, id=f"{place[0].stem}:{place[2].lineno}") for place in said()],
)
def test_what_is_said_is_an_entry(path: Path, name: str, call: ast.Call) -> None:
    """The entry exists, gets its fields and no others, and has the digit of the exit code."""
    assert len(call.args) == 1 and isinstance(call.args[0], ast.Constant)
    entry = call.args[0].value
    assert isinstance(entry, str) and entry in ENTRIES
    assert {keyword.arg for keyword in call.keywords} == fields(entry)
    if name in CODES:
        assert entry[3] == str(CODES[name])
    else:
        assert entry[3] == "9" if path.parent.name == "dom0" else path.stem in ("start", "errors")


def said_by_shells() -> dict[str, str]:
    """What the shell scripts say, with %d for each field."""
    found = {}
    for path in [*(TOP / "programs").iterdir(), *(TOP / "qubes-rpc").iterdir()]:
        for text, name in re.findall(r"printf '[a-z-]+: (.*) \[(UP-...)\]", path.read_text()):
            found[name] = text
    return found


def test_every_entry_is_said() -> None:
    used = {call.args[0].value for *_, call in said() if isinstance(call.args[0], ast.Constant)}
    assert ENTRIES.keys() - used - said_by_shells().keys() == set()


def test_what_shells_say_is_an_entry() -> None:
    assert said_by_shells()
    for name, text in said_by_shells().items():
        assert text == re.sub(r"{[a-z]+}", "%d", ENTRIES[name][0])


FAILURES = {"failure", "departure", "refusal"}
"""Functions that choose one of the exceptions."""


def test_nothing_is_said_without_an_entry() -> None:
    """No text is given to an exception that a user reads, and no other kind is raised.

    Nobody but `start` writes to standard error. What the doctors find is no failure of theirs.
    """
    kinds = {*CODES, *OF_QUBESD, "QubesVMNotRunningError", "NoAnswerError"}
    for path, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                raised = next(calls(node.exc))[0]
                assert raised in kinds or raised.lstrip("_") in FAILURES, (path, node.lineno)
        for name, call in calls(tree):
            if name in OF_QUBESD:
                assert not isinstance(call.args[0], ast.Constant | ast.JoinedStr | ast.BinOp)
            speaks = path.stem in ("start", "host") or path.parts[-2:] == ("dom0", "doctor.py")
            assert name not in ("say", "print") or speaks, (path, call.lineno)
            if name in ("warning", "error", "info") and path.parent.name == "dom0":
                form, text = call.args
                assert isinstance(form, ast.Constant) and form.value == "%s", (path, call.lineno)
                assert isinstance(text, ast.Name) or next(calls(text))[0] == "sentence"


def test_ids_are_unique_sorted_and_of_a_group() -> None:
    parts = [devices.ENTRIES, dom0.ENTRIES, peers.ENTRIES, requests.ENTRIES, system.ENTRIES]
    assert max(Counter(name for part in parts for name in part).values()) == 1
    for part in parts:
        assert list(part) == sorted(part)
    assert {name[3] for name in ENTRIES} == set(GROUPS)
    assert all(re.fullmatch(r"UP-[1-9][0-9]{2}", name) for name in ENTRIES)


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_tells_what_why_and_what_to_do(name: str) -> None:
    text, causes, remedy = ENTRIES[name]
    assert text.isascii() and text.isprintable() and not text.endswith(".")
    assert len(text) < 200
    assert re.search(r"[:;,] ", text) or "quoted" in text, "it says what to do"
    assert causes and isinstance(causes, tuple)
    for paragraph in (*causes, remedy):
        assert paragraph.isascii() and re.fullmatch(r"(?:[A-Z`]|dom0|qrexec).*\.", paragraph)
        assert paragraph.count("`") % 2 == 0


@pytest.mark.parametrize("name", ENTRIES)
def test_each_cause_is_one_sentence(name: str) -> None:
    """Whoever has another one skips the whole line."""
    for cause in ENTRIES[name][1]:
        assert not several(cause), cause


def several(cause: str) -> bool:
    """Whether a text has a second sentence, or joins two causes."""
    return bool(re.search(r"[.?!;] [A-Z`a-z]|, or ", cause))


@pytest.mark.parametrize(
    "cause",
    ["It is gone. Or it never was there.", "It is gone; it was unplugged.", "It left, or died."],
)
def test_two_causes_in_one_are_found(cause: str) -> None:
    assert several(cause)


PROGRAMS = (
    "adb df echo free grep journalctl qubes-usb-proxy qvm-[a-z-]+ sudo /usr/lib/qubes/[a-z-]+"
)
COMMAND = re.compile(rf"`(?:{PROGRAMS.replace(' ', '|')}) [^`]+`")
"""What a remedy has that can be typed."""

NO_COMMAND = {
    "UP-917": "only the authors of the other program can mend it",
    "UP-924": "only the authors of the other extension can mend it",
}
"""The entries that no command helps with, and why."""


def test_each_remedy_has_a_command() -> None:
    lacking = {name for name, (_, _, remedy) in ENTRIES.items() if not COMMAND.search(remedy)}
    assert lacking == NO_COMMAND.keys()


@pytest.mark.parametrize("path", PAGES)
def test_the_pages_are_what_the_catalogue_says(path: str) -> None:
    assert (TOP / path).read_text() == PAGES[path](), "run `make errors`"
