# SPDX-License-Identifier: GPL-2.0-or-later
"""The rule of a call: there while it runs, shared, and never one that breaks every other call."""

from __future__ import annotations

import importlib
import string
from pathlib import Path

import pytest

from usb_proxy.dom0.policy import FILE_NAME, CallRules
from usb_proxy.dom0.qubesd import QubesException
from usb_proxy.idents import BusId, DomainName

WORK, HOME, USB = DomainName("work"), DomainName("home-dm"), DomainName("sys-usb")
FIRST, SECOND = BusId("2-1"), BusId("1-1.4")


def lines(folder: Path) -> list[str]:
    path = folder / FILE_NAME
    found = path.read_text().splitlines() if path.exists() else []
    return [line for line in found if not line.startswith("#")]


def test_the_name_is_legal_and_in_its_place() -> None:
    assert set(FILE_NAME) <= set(string.ascii_lowercase + string.digits + "_.-")
    assert "30-user.policy" < FILE_NAME < "35-compat.policy"


def test_calls_at_the_same_time_share_the_file(tmp_path: Path) -> None:
    rules = CallRules(tmp_path)
    one = "qubes.USB +2-1 work sys-usb allow user=root"
    two = "qubes.USB +1-1.4 home-dm sys-usb allow user=root"
    with rules.allowing(WORK, USB, FIRST):
        assert lines(tmp_path) == [one]
        with rules.allowing(HOME, USB, SECOND), rules.allowing(WORK, USB, FIRST):
            assert lines(tmp_path) == sorted([one, two])
        assert lines(tmp_path) == [one]
        with pytest.raises(KeyError), rules.allowing(HOME, USB, SECOND):
            raise KeyError
        assert lines(tmp_path) == [one]
        assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]
        assert (tmp_path / FILE_NAME).stat().st_mode & 0o007 == 0
    assert (tmp_path / FILE_NAME).read_bytes() == b""


def test_what_a_killed_qubesd_left(tmp_path: Path) -> None:
    with pytest.raises(GeneratorExit), CallRules(tmp_path).allowing(WORK, USB, FIRST):
        (tmp_path / f".{FILE_NAME}.new").write_text("half a li")
        left = {path.name: path.read_text() for path in tmp_path.iterdir()}
        raise GeneratorExit
    for name, text in left.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "30-user.policy").write_text("")
    CallRules(tmp_path).clear()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "30-user.policy": "",
        FILE_NAME: "",
    }
    CallRules(tmp_path).clear()


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    rules = CallRules(tmp_path / "none")
    missing = pytest.raises(QubesException, match=r"has no folder .*none for the rule")
    with missing, rules.allowing(WORK, USB, FIRST):
        raise AssertionError("called without a rule")
    rules.clear()


def test_a_rule_that_cannot_be_taken_back_takes_the_file_along(tmp_path: Path) -> None:
    rules = CallRules(tmp_path)
    with rules.allowing(HOME, USB, SECOND):
        temporary = rules._temporary
        with (
            pytest.raises(QubesException, match="has no folder"),
            rules.allowing(WORK, USB, FIRST),
        ):
            rules._temporary = tmp_path / "none" / "x"
        assert (tmp_path / FILE_NAME).read_bytes() == b""
        rules._temporary = temporary


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / f".{FILE_NAME}.new").symlink_to(victim)
    with CallRules(tmp_path).allowing(WORK, USB, FIRST):
        assert lines(tmp_path)
    assert victim.read_text() == "mine"


def test_the_real_parser_takes_it(tmp_path: Path) -> None:
    """An empty one, too; and the user's own rules come first."""
    try:
        parser = importlib.import_module("qrexec.policy.parser")
    except ImportError:
        pytest.skip("qubes-core-qrexec is not here: put it into PYTHONPATH")
    qubes = {"type": "AppVM", "template_for_dispvms": False, "tags": [], "default_dispvm": None}
    domains = {name: {**qubes, "name": name} for name in ("work", "sys-usb", "home", "home-dm")}
    domains["dom0"] = {**qubes, "type": "AdminVM", "name": "dom0"}
    info = {"domains": {f"uuid:{n}": d for n, d in enumerate(domains.values())} | domains}

    def allowed(source: str, target: str, argument: str) -> bool:
        policy = parser.FilePolicy(policy_path=[tmp_path])
        request = parser.Request("qubes.USB", argument, source, target, system_info=info)
        try:
            resolution = policy.evaluate(request)
        except importlib.import_module("qrexec.exc").AccessDenied:
            return False
        return bool(resolution.user == "root")

    (tmp_path / "90-usb-proxy.policy").write_text("qubes.USB * @anyvm @anyvm deny\n")
    rules = CallRules(tmp_path)
    with (
        rules.allowing(WORK, USB, FIRST),
        rules.allowing(HOME, USB, SECOND),
    ):
        assert allowed("work", "sys-usb", "+2-1")
        assert allowed("home-dm", "sys-usb", "+1-1.4")
        assert not allowed("work", "sys-usb", "+1-1.4")
        assert not allowed("home", "sys-usb", "+1-1.4")
        (tmp_path / "30-user.policy").write_text("qubes.USB * work @anyvm deny\n")
        assert not allowed("work", "sys-usb", "+2-1")
    assert not allowed("home-dm", "sys-usb", "+1-1.4")
