# SPDX-License-Identifier: GPL-2.0-or-later
"""The shells that outlive an exporter and an importer, with a launcher that is killed at once."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parents[2] / "programs"
LAUNCH = "/usr/lib/qubes/usb-proxy/launch"

pytestmark = pytest.mark.skipif(
    not PROGRAMS.is_dir(), reason="the launchers are not beside the package"
)


def guard(folder: Path, program: str, stderr: int) -> tuple[int, list[str]]:
    """Run the shell of a program: its exit code, and what it launched.

    The repair fails, with a word about something else.
    """
    calls = folder / "calls"
    launch = folder / "launch"
    launch.write_text(
        f'#!/bin/sh\necho "$*" >> {calls}\n'
        '[ "$1" != usb-repair ] && kill -KILL $$\necho vault:3-1 >&2\n'
    )
    launch.chmod(0o755)
    script = folder / program
    text = (PROGRAMS / program).read_text()
    assert LAUNCH in text
    script.write_text(text.replace(LAUNCH, str(launch)))
    code = subprocess.run(["/bin/sh", script, "argument"], stderr=stderr, check=False).returncode
    return code, calls.read_text().splitlines()


@pytest.mark.parametrize("program", ["usb-export", "usb-import"])
def test_it_repairs_also_when_nobody_has_its_stderr(tmp_path: Path, program: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert guard(tmp_path, program, writer) == (137, [f"{program} argument", "usb-repair"])
    finally:
        os.close(writer)


def test_a_killed_exporter_is_told_of_in_one_sentence(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as stderr:
        try:
            guard(tmp_path, "usb-export", writer)
        finally:
            os.close(writer)
        said = "usb-export: killed by signal 9, so the device is given back; try again [UP-802]\n"
        assert stderr.read().decode() == said
