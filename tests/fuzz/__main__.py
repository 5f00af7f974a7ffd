# SPDX-License-Identifier: GPL-2.0-or-later
"""`python -m tests.fuzz TARGET [libFuzzer's options] [corpus folders]`: run one target.

`python -m tests.fuzz --all SECONDS [TARGET...]` runs each for so long: new finds go to
`build/fuzz/TARGET`, inputs that break a property to `build/fuzz/broken-TARGET-*`.
`python -m tests.fuzz --keep TARGET...` adds to the corpus what of the finds reaches more code.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]

TOP = Path(__file__).parents[2]
FINDS = TOP / "build/fuzz"
CORPUS = Path(__file__).parent / "corpus"
INPUT_LIMIT = 4096
CORPUS_LIMIT = 200
"""What is kept is small enough to be looked at."""

SHA1_DIGITS = 40
"""libFuzzer's names."""

SUMMARY = re.compile(r"#(\d+)\s+DONE\s+cov: (\d+) ft: (\d+) corp: (\d+)/(\S+).*?exec/s: (\d+)")


def fuzz(name: str, options: list[str]) -> None:
    """Run one target until its options say stop; this ends the process."""
    atheris.enabled_hooks.add("str")
    with atheris.instrument_imports(include=["usb_proxy"]):
        from .all_targets import TARGETS  # noqa: PLC0415 (what is imported here is instrumented)
    # A merge starts itself again, by a shell.
    ourselves = f"{shlex.quote(sys.executable)} -m tests.fuzz {name}"
    atheris.Setup([ourselves, *options], TARGETS[name])
    atheris.Fuzz()


def start(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "tests.fuzz", name, *options]
    return subprocess.run(
        command, cwd=TOP, capture_output=True, text=True, check=False, errors="replace"
    )


def run_all(seconds: str, names: list[str]) -> int:
    """Each target for so many seconds, and a line of figures for each."""
    broken = 0
    print(f"{'target':18} {'runs':>10} {'per second':>10} {'code':>6} {'features':>8} {'finds':>6}")
    for name in names or targets():
        finds = FINDS / name
        finds.mkdir(parents=True, exist_ok=True)
        done = start(
            name,
            f"-max_total_time={seconds}",
            f"-max_len={INPUT_LIMIT}",
            "-timeout=10",
            f"-artifact_prefix={FINDS}/broken-{name}-",
            str(finds),
            str(CORPUS / name),
        )
        found = SUMMARY.search(done.stderr)
        if done.returncode or found is None:
            broken += 1
            print(f"{name}: BROKEN\n{done.stdout[-2000:]}{done.stderr[-2000:]}", flush=True)
        else:
            runs, code, features, finds_kept, _, speed = found.groups()
            figures = f"{runs:>10} {speed:>10} {code:>6} {features:>8} {finds_kept:>6}"
            print(f"{name:18} {figures}", flush=True)
    return 1 if broken else 0


def keep(names: list[str]) -> int:
    """Add to the corpus what reaches code that it does not reach yet."""
    for name in names or targets():
        corpus = CORPUS / name
        start(name, "-merge=1", f"-max_len={CORPUS_LIMIT}", str(corpus), str(FINDS / name))
        fresh = [path for path in corpus.iterdir() if len(path.name) == SHA1_DIGITS]
        for path in fresh:
            path.rename(corpus / f"found-{path.name[:8]}")
        print(f"{name}: {len(fresh)} added")
    return 0


def targets() -> list[str]:
    """The names of all."""
    return sorted(folder.name for folder in CORPUS.iterdir())


def main(arguments: list[str]) -> int:
    """Exit code 1 if a property was broken."""
    if arguments[:1] == ["--all"] and len(arguments) > 1:
        return run_all(arguments[1], arguments[2:])
    if arguments[:1] == ["--keep"]:
        return keep(arguments[1:])
    if not arguments:
        print(__doc__)
        return 2
    fuzz(arguments[0], arguments[1:])
    return 0


sys.exit(main(sys.argv[1:]))
