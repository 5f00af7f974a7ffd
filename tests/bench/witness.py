# SPDX-License-Identifier: GPL-2.0-or-later
"""A second witness for the cost of a program's start: instructions, as callgrind counts them.

It sees those of the process alone; the guest's clock counts the kernel's, too.
"""

import re
import shutil
import subprocess
from pathlib import Path

PROGRAMS = ("usb-attach", "usb-detach", "usb-export", "usb-import")
START = """
import posix, sys
sys.path.append({folder!r})
from usb_proxy.start import start
posix._exit(start(sys.argv[1:]))
"""


def instructions(tree: Path) -> dict[str, list[float]]:
    """Millions of instructions until each program has found that it was asked for nothing.

    Nothing where valgrind is not installed, or `tree` is of another implementation.
    """
    folder = tree / "usr/lib/qubes/usb-proxy"
    if not (shutil.which("valgrind") and (folder / "usb_proxy/start.py").exists()):
        return {}
    code = START.format(folder=str(folder))
    found = {}
    for name in PROGRAMS:
        done = subprocess.run(
            [
                "valgrind",
                "--tool=callgrind",
                "--callgrind-out-file=/dev/null",
                "/usr/bin/python3",
                "-IS",
                "-c",
                code,
                name,
            ],
            env={"PATH": "/usr/bin"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        (count,) = re.findall(r"Collected : (\d+)", done.stderr)
        found[f"start of {name} alone, million instructions by callgrind"] = [int(count) / 1e6]
    return found
