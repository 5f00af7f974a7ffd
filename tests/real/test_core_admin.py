# SPDX-License-Identifier: GPL-2.0-or-later
"""The tests of dom0's part with the real qubesd, and those of its policy with the real parser.

CORE_ADMIN is a checkout of qubes-core-admin, QREXEC one of qubes-core-qrexec. A process of its own
imports them: tests/dom0/conftest.py chooses before anything else.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import subprocess
import sys
import unittest
from pathlib import Path

import pytest

from tests.integration import extra

from .conftest import check, part

extra.provide()
from usb_proxy.dom0 import platform_case, platform_tests  # noqa: E402 (which takes what was provided)

TOP = Path(__file__).parents[2]


@pytest.mark.timeout(900)
def test_dom0_in_the_real_qubesd() -> None:
    admin = part("CORE_ADMIN", "qubes/devices.py", "qubes/device_protocol.py", "qubes/ext/utils.py")
    qrexec = part("QREXEC", "qrexec/policy/parser.py")
    said = check("tests/dom0", QUBES_CORE_ADMIN=str(admin), PYTHONPATH=str(qrexec))
    assert "QUBES_CORE_ADMIN" not in said  # as what is not run without it says
    assert "qrexec" not in said


@pytest.mark.timeout(300)
def test_policy_in_the_real_parser() -> None:
    qrexec = part("QREXEC", "qrexec/policy/parser.py")
    said = check("tests/packaging/test_policy.py", PYTHONPATH=str(qrexec))
    assert "skipped" not in said


PLAIN = ("kill",)
"""What a wrapper has of the qube itself."""

LIBVIRT = """
class libvirtError(Exception): pass
class virConnect: pass
class virDomain: pass
def openReadOnly(_): raise libvirtError  # this is no dom0
"""
LOAD = """
import ast, inspect, json, sys, textwrap, unittest
import qubes.tests.extra as extra
import qubes.vm.appvm
def assigned(kind):
    found = set()
    for each in kind.__mro__[:-1]:
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(each)))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(ast.unparse(node))
    return found
def lacks(names, *kinds):
    stored = set().union(*map(assigned, kinds))
    return [name for name in names
            if f"self.{name}" not in stored and not any(hasattr(kind, name) for kind in kinds)]
test, qube = json.loads(sys.argv[1])
suite = unittest.defaultTestLoader.loadTestsFromModule(extra)
found = []
def walk(suite):
    for each in suite:
        walk(each) if isinstance(each, unittest.TestSuite) else found.append(str(each))
walk(suite)
result = unittest.TestResult()
suite.run(result)
print(json.dumps({
    "found": found,
    "failed": [text for _, text in result.errors + result.failures],
    "skipped": len(result.skipped),
    "lacks": lacks(test, extra.ExtraTestCase)
    + lacks(qube, extra.VMWrapper, qubes.vm.appvm.AppVM),
    "api": {
        f"{kind.__name__}.{name}": [*inspect.signature(function).parameters]
        for kind in (extra.VMWrapper, extra.ExtraTestCase)
        for name, function in inspect.getmembers(kind, inspect.isfunction)
    },
}))
"""


def used() -> tuple[list[str], list[str]]:
    """The names that the platform's tests use of a test that is not theirs, and of a qube."""
    files = [Path(inspect.getfile(each)) for each in (platform_case, platform_tests)]
    parts = [part for file in files for part in ast.parse(file.read_text()).body]
    # But of the base class that is there for the sake of types.
    nodes = [node for part in parts if not isinstance(part, ast.If) for node in ast.walk(part)]
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    names: dict[str, set[str]] = {"test": set(), "qube": set()}
    for node in nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            own.add(node.attr)
        elif isinstance(node, ast.Attribute):
            base = ast.unparse(node.value)
            if base in ("self", "super()"):
                names["test"].add(node.attr)
            elif re.fullmatch(r"vm|self\.(backend|frontend|vm\([\w.]+\))", base):
                names["qube"].add(node.attr)
    return sorted(names["test"] - own), sorted(names["qube"])


def test_the_platform_finds_our_tests(tmp_path: Path) -> None:
    """Its loader makes a class for each template; what the lab gives in its place has its names."""
    admin = part("CORE_ADMIN", "qubes/tests/extra.py")
    qrexec = part("QREXEC", "qrexec/policy/parser.py")
    (tmp_path / "libvirt.py").write_text(LIBVIRT)
    installed = tmp_path / "qubes_usb_proxy_dom0-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Name: qubes-usb-proxy-dom0\nVersion: 1\n")
    points = (TOP / "usb_proxy/dom0/entry_points.txt").read_text()
    (installed / "entry_points.txt").write_text(points)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, json.dumps(used())],
        env=os.environ
        | {"QUBES_TEST_TEMPLATES": "debian fedora"}
        | {"PYTHONPATH": ":".join(map(str, (tmp_path, admin, qrexec, TOP)))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert not told["failed"]
    assert not told["lacks"]
    assert told["skipped"] == len(told["found"])  # no dom0
    loader = unittest.TestLoader()
    assert len(told["found"]) == sum(
        len(loader.getTestCaseNames(each)) * times
        for times, each in (
            *((1, each) for each in platform_tests.list_tests()),
            *((2, each) for each in platform_tests.list_tests_for_template()),
        )
    )
    classes = {name.split("/")[1] for name in told["found"]}
    templates = {"debian", "fedora"}
    assert classes == {"TC_30_Policy"} | {
        f"{each.__name__}_{template}"
        for each in platform_tests.list_tests_for_template()
        for template in templates
    }
    for kind in (extra.VMWrapper, extra.ExtraTestCase):
        for name, function in inspect.getmembers(kind, inspect.isfunction):
            real = told["api"].get(f"{kind.__name__}.{name}", [])
            if name in vars(kind) and not name.startswith("_") and name not in PLAIN:
                assert {*inspect.signature(function).parameters} <= {*real}, name
