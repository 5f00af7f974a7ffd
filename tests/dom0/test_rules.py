# SPDX-License-Identifier: GPL-2.0-or-later
"""What qvm-usb-doctor says of dom0's policy, by qrexec's own parser."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from usb_proxy.dom0 import rules
from usb_proxy.dom0.asking import Finding

DENIED = "a rule denies the call: "
DECIDED = "a rule of yours decides: "
FREE = "no rule of dom0's policy denies qubes.USB"
BROKEN = "dom0's policy cannot be used, so every call is refused: "
ELSEWHERE = "a rule sends the call to another qube: "


def system_info() -> Any:
    qube = {"type": "AppVM", "template_for_dispvms": False, "default_dispvm": "work", "tags": []}
    names = ("work", "sys-usb", "vault")
    domains = {name: {**qube, "name": name, "uuid": name} for name in names}
    domains["work"]["tags"] = ["untrusted"]
    return {"domains": domains}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    try:
        utils = importlib.import_module("qrexec.utils")
    except ImportError:
        pytest.skip("qubes-core-qrexec is not here: put it into PYTHONPATH")
    monkeypatch.setattr(utils, "get_system_info", system_info)
    for name in ("run", "etc", "etc/include"):
        (tmp_path / name).mkdir()
    (tmp_path / "etc/include/usb").write_text("qubes.USB * @anyvm @anyvm deny\n")
    (tmp_path / "etc/80-usb-proxy.policy").write_text("qubes.USB * @anyvm @anyvm deny\n")
    return tmp_path


def only(folder: Path, source: str = "work") -> Finding:
    (found,) = rules.examine(source, "sys-usb", "2-1", (folder / "run", folder / "etc"))
    return found


@pytest.mark.parametrize(
    ("line", "level", "text"),
    [
        ("qubes.USB +2-1 work sys-usb deny", "error", DENIED),
        ("qubes.USB * @anyvm @anyvm deny notify=no", "error", DENIED),
        ("* * work * deny", "error", DENIED),
        ("qubes.USB * @tag:untrusted sys-usb deny", "error", DENIED),
        ("qubes.USB * @type:AppVM @anyvm deny", "error", DENIED),
        ("!include include/usb", "error", DENIED),
        ("qubes.USB * work sys-usb denny", "error", BROKEN),
        ("qubes.USB work sys-usb deny", "error", BROKEN),
        ("!include include/none", "error", BROKEN),
        ("qubes.USB * work sys-usb allow target=vault", "error", ELSEWHERE),
        ("qubes.USB * work sys-usb allow target=@dispvm", "error", ELSEWHERE),
        ("qubes.USB * work sys-usb allow user=root", "ok", DECIDED),
        ("qubes.USB * work sys-usb ask", "ok", DECIDED),
        ("qubes.USB +2-2 work sys-usb deny", "ok", FREE),
        ("qubes.USB * vault sys-usb deny", "ok", FREE),
        ("qubes.USB * work-dm sys-usb deny", "ok", FREE),
        ("# qubes.USB * work sys-usb deny", "ok", FREE),
    ],
)
def test_rules(folder: Path, line: str, level: str, text: str) -> None:
    (folder / "etc/30-user.policy").write_text(line + "\n")
    found = only(folder)
    assert (found.level, found.text.startswith(text)) == (level, True), found


def test_where_a_rule_stands(folder: Path) -> None:
    path = folder / "etc/30-user.policy"
    path.write_text("\nqubes.USB  * work  sys-usb deny\n")
    text = f"{DENIED}{path}:2: qubes.USB * work sys-usb deny"
    assert only(folder) == Finding("dom0", "error", text, f"sudoedit {path}")


def test_a_stub_domain_has_rules_of_its_own(folder: Path) -> None:
    (folder / "etc/30-user.policy").write_text("qubes.USB * work-dm sys-usb deny\n")
    assert only(folder, "work-dm").text.startswith(DENIED)


def test_a_file_name_that_no_call_survives(folder: Path) -> None:
    (folder / "etc/30-user (copy).policy").write_text("")
    assert only(folder).text.startswith(f"{BROKEN}invalid filename")


def test_a_file_of_run_shadows_that_of_etc(folder: Path) -> None:
    for name, line in (("etc", "qubes.USB * work sys-usb deny"), ("run", "")):
        (folder / name / "30-user.policy").write_text(line)
    assert only(folder).text == FREE


def test_the_rules_of_other_attaches_change_nothing(folder: Path) -> None:
    (folder / "run" / rules.FILE_NAME).write_text("qubes.USB +2-1 work sys-usb deny\n")
    assert only(folder).text == FREE


def test_a_policy_that_may_not_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied", "/etc/qubes/policy.d")

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert only(folder)[1::2] == ("warning", "sudo qvm-usb-doctor")


def test_qubesd_does_not_answer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise FileNotFoundError(2, "No such file")

    monkeypatch.setattr(sys.modules["qrexec.utils"], "get_system_info", refuse)
    assert only(folder).text.startswith("cannot tell whether dom0's policy allows the call: ")


def test_without_the_parser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qrexec", None)
    text = "cannot tell whether dom0's policy allows the call: qrexec's parser is not here"
    assert only(tmp_path) == Finding("dom0", "warning", text)
