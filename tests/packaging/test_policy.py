# SPDX-License-Identifier: GPL-2.0-or-later
"""dom0's policy: what it forbids, and what the rules that it suggests allow."""

import importlib.util
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from .machine import TOP

FILE = TOP / "policy/80-usb-proxy.policy"
ATTACHING = re.search(
    r'^FILE_NAME = "(.*)"$', (TOP / "usb_proxy/dom0/rules.py").read_text(), re.MULTILINE
)
SERVICES = ("qubes.USB", "qubes.USBAttach", "qubes.USBDetach")
PARAMETERS = {
    "allow": {"user", "target", "notify"},
    "deny": {"notify"},
    "ask": {"user", "target", "default_target", "notify"},
}


@dataclass(frozen=True)
class Rule:
    """SERVICE ARGUMENT SOURCE TARGET ACTION PARAMETERS, as qrexec's manual has it."""

    service: str
    argument: str
    source: str
    target: str
    action: str
    parameters: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, line: str) -> "Rule":
        service, argument, source, target, action, *rest = line.split()
        rule = cls(
            service, argument, source, target, action, dict(each.split("=", 1) for each in rest)
        )
        assert re.fullmatch(r"\*|[A-Za-z0-9_.-]+", service)
        assert re.fullmatch(r"\*|\+[A-Za-z0-9_.+-]*", argument)
        for name in (source, target):
            assert re.fullmatch(r"@anyvm|[A-Za-z][A-Za-z0-9_.-]*", name)
        assert rule.parameters.keys() <= PARAMETERS[action]
        return rule

    def matches(self, service: str, argument: str, source: str, target: str) -> bool:
        """@anyvm is every qube but dom0, and not @default (qrexec/policy/parser.py, VMToken)."""
        return (
            self.service in ("*", service)
            and self.argument in ("*", f"+{argument}")
            and all(
                rule == name or (rule == "@anyvm" and name not in ("dom0", "@default"))
                for rule, name in ((self.source, source), (self.target, target))
            )
        )


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def examples() -> list[str]:
    """The rules that the file shows behind #."""
    return re.findall(r"^# +(qubes\.\S+ .*)$", FILE.read_text(), re.MULTILINE)


def evaluate(files: dict[str, str], *call: str) -> str:
    """The action of the first rule that matches, in the order of file names; else deny."""
    for name in sorted(files):
        assert re.fullmatch(r"[a-z0-9_.-]+\.policy", name), "would break every call of the machine"
        for rule in map(Rule.parse, lines(files[name])):
            if rule.matches(*call):
                return rule.action
    return "deny"


LATER = {"90-default.policy": "* * @anyvm @anyvm ask\n"}
"""Whatever a later file allows, this one comes first."""


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("argument", ["", "2-1", "0x20a0.0x42dd"])
@pytest.mark.parametrize(
    ("source", "target"),
    [("work", "sys-usb"), ("sys-usb", "work"), ("work-dm", "sys-usb"), ("sys-net", "vault")],
)
def test_denied(service: str, argument: str, source: str, target: str) -> None:
    ours = {FILE.name: FILE.read_text()}
    assert evaluate({**ours, **LATER}, service, argument, source, target) == "deny"
    assert evaluate(LATER, service, argument, source, target) == "ask"


def test_other_services_are_not_touched() -> None:
    files = {FILE.name: FILE.read_text(), **LATER}
    assert evaluate(files, "qubes.Filecopy", "", "work", "sys-usb") == "ask"
    assert evaluate(files, "qubes.USBx", "", "work", "sys-usb") == "ask"


@pytest.mark.parametrize(
    ("number", "argument", "action"),
    [
        (0, "2-1", "allow"),
        (1, "0x20a0.0x42dd", "allow"),
        (2, "2-1", "ask"),
        (2, "9-9", "ask"),
    ],
)
def test_examples_allow_what_they_say(number: int, argument: str, action: str) -> None:
    rule = examples()[number]
    files = {"30-user.policy": rule, FILE.name: FILE.read_text(), **LATER}
    assert evaluate(files, "qubes.USB", argument, "work", "sys-usb") == action
    for other in (
        ("qubes.USB", argument, "vault", "sys-usb"),
        ("qubes.USB", argument, "work", "sys-net"),
        ("qubes.USBAttach", argument, "work", "sys-usb"),
        ("qubes.USBDetach", argument, "work", "sys-usb"),
    ):
        assert evaluate(files, *other) == "deny"
    if number < 2:
        assert evaluate(files, "qubes.USB", "1-9", "work", "sys-usb") == "deny"


def test_every_example_is_tested() -> None:
    assert len(examples()) == 3
    for rule in map(Rule.parse, examples()):
        assert rule.parameters["user"] == "root"


def test_order_of_files() -> None:
    """The user's own rules, then the one of a call of dom0's, then ours, then the defaults."""
    assert ATTACHING
    names = ["30-user.policy", ATTACHING[1], FILE.name, "90-default.policy"]
    assert names == sorted(names)
    rule = "qubes.USB +2-1 work sys-usb allow user=root"
    files = {ATTACHING[1]: rule, FILE.name: FILE.read_text()}
    assert evaluate(files, "qubes.USB", "2-1", "work", "sys-usb") == "allow"
    assert evaluate(files, "qubes.USB", "2-2", "work", "sys-usb") == "deny"


def test_qrexecs_own_linter(tmp_path: Path) -> None:
    if importlib.util.find_spec("qrexec") is None:
        pytest.skip("qrexec's policy tools are on machines with Qubes only")
    (tmp_path / "30-user.policy").write_text("\n".join(examples()) + "\n")
    for file in (FILE, tmp_path / "30-user.policy"):
        subprocess.run([sys.executable, "-m", "qrexec.tools.qubes_policy_lint", file], check=True)
