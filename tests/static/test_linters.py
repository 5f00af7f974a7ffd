# SPDX-License-Identifier: GPL-2.0-or-later
"""The static checks, each skipped where its tool is not installed."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
SHELL = ("#!/bin/sh", "#!/bin/bash")


def passes(*command: str) -> None:
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def source_files() -> list[Path]:
    """What is ours: no build results, no caches."""
    folders = [".ci", "archlinux", "completion", "debian", "docs", "man", "policy", "polkit"]
    folders += ["programs", "qubes-rpc", "rpm_spec", "sudoers", "tests", "udev", "usb_proxy"]
    files = [".qubesbuilder", "MANIFEST.in", "Makefile", "setup.py", "stdeb.cfg"]
    found = [TOP / name for name in files]
    for folder in folders:
        found += [path for path in (TOP / folder).rglob("*") if path.is_file()]
    return [path for path in found if "__pycache__" not in path.parts]


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "setup.py", "usb_proxy", "tests"],
        ["ruff", "format", "--check", "setup.py", "usb_proxy", "tests"],
        ["mypy", "--cache-dir=build/mypy", "usb_proxy"],
        ["mypy", "--cache-dir=build/mypy", "tests"],
    ],
    ids=" ".join,
)
def test_python(command: list[str]) -> None:
    if importlib.util.find_spec(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    passes(sys.executable, "-m", *command)


def test_shell() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    scripts = [
        str(path)
        for path in source_files()
        if path.read_bytes().startswith(tuple(line.encode() for line in SHELL))
    ]
    assert len(scripts) > len(list((TOP / "programs").iterdir())) - 1
    passes("shellcheck", *scripts, "completion/bash")


def test_licence_in_every_file() -> None:
    """One line of SPDX in the first three, but for formats that have no comments."""
    without = [
        str(path.relative_to(TOP))
        for path in source_files()
        if b"SPDX-License-Identifier: GPL-2.0-or-later"
        not in b"\n".join(path.read_bytes().split(b"\n")[:3])
        and path.parent.name not in ("debian", "source")
        and path.stat().st_size > 0
        and path.name not in ("qubes.USB.config", "requirements.txt")
        and path.suffix != ".json"
        and "corpus" not in path.parts
    ]
    assert without == []


def test_the_version_is_the_same_everywhere() -> None:
    version = (TOP / "version").read_text().strip()
    entry = (TOP / "debian/changelog").read_text().split("\n")[0]
    assert entry.startswith(f"qubes-usb-proxy ({version}) ")
