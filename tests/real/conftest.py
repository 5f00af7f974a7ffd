# SPDX-License-Identifier: GPL-2.0-or-later
"""A part is a checkout that a variable names: not given, its tests say so; unusable, they fail."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.machine import TOP, attempt

PARTS = ("BUILDER", "CORE_ADMIN", "QREXEC", "CORE_ADMIN_CLIENT", "PLATFORM")
"""The same as in the Makefile."""


def pytest_report_header() -> list[str]:
    """Which revision of each part is tested: it belongs into the notes of a release."""
    given = {name: os.environ.get(name) for name in PARTS}
    return [
        f"{name}={folder}, {revision(Path(folder))}" for name, folder in given.items() if folder
    ]


def revision(checkout: Path) -> str:
    """That of git, and whether files differ from it."""
    git = ["git", "-C", str(checkout), "-c", f"safe.directory={checkout.resolve()}"]
    head = attempt(*git, "rev-parse", "HEAD").stdout.strip()
    if not head or not (checkout / ".git").exists():
        return "of no known revision"
    changed = attempt(*git, "status", "--porcelain", "--untracked-files=no").stdout
    return f"revision {head}{', changed' if changed else ''}"


def part(variable: str, *files: str) -> Path:
    """The checkout that the variable names; `files` are some that it has to have.

    Skips the test where the variable is not set, and fails it where something else is there.
    """
    given = os.environ.get(variable)
    if not given:
        pytest.skip(f"not run: {variable}= was not given", allow_module_level=True)
    folder = Path(given).resolve()
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        pytest.fail(f"{variable}={given} is unusable: no {', '.join(missing)}", pytrace=False)
    return folder


def check(*tests: str, **environment: str) -> str:
    """Run tests as CI does; none may fail, and what is said of those that were not run is given."""
    run = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rs", *tests]
    done = subprocess.run(
        run, cwd=TOP, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^[1-9]\d* passed", done.stdout, re.MULTILINE), done.stdout
    print(done.stdout)
    return done.stdout
