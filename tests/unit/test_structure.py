# SPDX-License-Identifier: GPL-2.0-or-later
"""What the sources promise about themselves: size, direction of imports, cheap starts."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import usb_proxy

PACKAGE = Path(usb_proxy.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
LAYERS = (
    {"catalogue"},
    {"errors", "kernel"},
    {"idents", "handshake", "files"},
    {"host", "sockets"},
    {"folders", "uevents"},
    {"sysfs"},
    {"suspend"},
    {"qrexec", "locks", "journal"},
    {"endings"},
    {"backend.udev", "backend.usage", "backend.authorization", "backend.qubesdb"},
    {"backend.usbip_host"},
    {"backend.reenumeration"},
    {"backend.exports"},
    {"frontend.claims"},
    {"frontend.descriptors", "frontend.gates", "frontend.vhci", "frontend.records"},
    {"frontend.arrival", "frontend.enumeration"},
    {"frontend.imports"},
    {"repair"},
    {"tool.overview", "tool.screen", "tool.root", "tool.help", "tool.findings"},
    {"tool.files", "tool.system", "tool.drivers", "tool.watch"},
    {"tool.status", "tool.doctor", "tool.detach", "tool.repair"},
    {"commands"},
    {"start"},
    {"dom0.qubesd", "dom0.untrusted", "dom0.usb_ids", "dom0.ledger", "dom0.pace"},
    {"dom0.repairs", "dom0.installing"},
    {"dom0.asking"},
    {"dom0.rules", "dom0.showing"},
    {"dom0.records", "dom0.policy", "dom0.kinds", "dom0.wishes", "dom0.suspending"},
    {"dom0.requests", "dom0.tries"},
    {"dom0.device"},
    {"dom0.services", "dom0.notices", "dom0.claims", "dom0.questions"},
    {"dom0.assignments"},
    {"dom0.looks", "dom0.restart"},
    {"dom0.attachments"},
    {"dom0.extension"},
    {"dom0.platform_case"},
    {"dom0.platform_tests"},
    {"dom0.doctor"},
)
PACKAGES = {"backend", "frontend", "dom0", "tool"}
DOOR = {"files", "folders", "host", "sockets"}
"""Who opens files and sockets, starts programs and sends signals; nobody else knows a root."""

SYSTEM = {"posix", "os", "_socket", "socket", "signal", "_signal", "fcntl", "select", "subprocess"}
"""The modules of Python that do so; `errno` and `stat` have numbers alone."""

APART = {"backend": {"frontend"}, "frontend": {"backend"}, "dom0": {"backend", "frontend"}}
"""Each wing, and what it never imports."""
EXPENSIVE = {
    "os",
    *("argparse", "subprocess", "re", "json", "logging", "dataclasses", "typing", "socket"),
    *(
        "pathlib",
        "contextlib",
        "tempfile",
        "asyncio",
        "threading",
        "inspect",
        "shutil",
        "datetime",
        "enum",
    ),
}

NOT_ON_THE_WAY = {
    "usb-attach": {
        *("_socket", "struct", "usb_proxy.backend", "usb_proxy.frontend.vhci"),
        *("usb_proxy.journal", "usb_proxy.locks"),
    },
    "usb-export": {"struct", "usb_proxy.frontend"},
    "usb-import": {"struct", "usb_proxy.backend"},
}
"""What the programs that an attach waits for do without; neither wing has the other."""


def module(path: str) -> str:
    """The name of a module in `LAYERS`: its folder's, but in `PACKAGES` its own."""
    parts = path.split(".")
    return ".".join(parts[: 2 if parts[0] in PACKAGES else 1])


def layer(name: str) -> int:
    """How far up a module of the package is."""
    return next(height for height, names in enumerate(LAYERS) if name in names)


def imported(tree: ast.AST) -> set[str]:
    """The names of the package's modules that a module imports, also for its types alone."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    paths = {name.removeprefix("usb_proxy.") for name in names if name.startswith("usb_proxy.")}
    return {module(path) for path in paths}


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_modules_and_functions_are_small(source: Path) -> None:
    text = source.read_text()
    assert text.startswith("# SPDX-License-Identifier: GPL-2.0-or-later\n")
    assert len(text.splitlines()) < 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno + 1 < 40, node.name


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_imports_point_down_only(source: Path) -> None:
    name = module(".".join(source.relative_to(PACKAGE).with_suffix("").parts))
    if source.stem != "__init__":
        for other in imported(ast.parse(source.read_text())) - PACKAGES:
            assert layer(other) < layer(name), f"{source.stem} imports {other}"
            wing = name.partition(".")[0]
            assert other.partition(".")[0] not in APART.get(wing, ()), f"{name} imports {other}"


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_who_wants_something_of_the_system_asks_at_the_door(source: Path) -> None:
    """But dom0's half, which has no wings and no fake machine: qubesd is its door."""
    if source.parent.name == "dom0" or (source.parent == PACKAGE and source.stem in DOOR):
        return
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            assert not SYSTEM & {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] not in SYSTEM
            assert not SYSTEM & {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute):
            assert node.attr != "root", f"line {node.lineno}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "open", f"line {node.lineno}"


@pytest.mark.parametrize("name", ["usb-attach", "usb-import", "usb-export", "qubes-usb-proxy"])
def test_a_start_imports_nothing_expensive(name: str) -> None:
    code = (
        f"import sys; before = set(sys.modules); sys.path.append({str(PACKAGE.parent)!r})\n"
        f"from usb_proxy import start; start.load({name!r}); print(*(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-IS", "-c", code], capture_output=True, text=True, check=True
    )
    modules = set(done.stdout.split())
    assert "usb_proxy.commands." + name.replace("-", "_") in modules
    assert len([m for m in modules if m.startswith("usb_proxy.commands.")]) == 1
    allowed: set[str] = {"os"} if name == "qubes-usb-proxy" else set()
    assert not modules & EXPENSIVE - allowed
    assert "usb_proxy.catalogue" not in modules, "only a failure needs it"
    assert not modules & NOT_ON_THE_WAY.get(name, set())
