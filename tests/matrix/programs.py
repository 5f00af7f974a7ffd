# SPDX-License-Identifier: GPL-2.0-or-later
"""The installed programs, run as hostilely as their callers may."""

import re

from tests.packaging.machine import Root
from tests.packaging.test_install import ENTRY_POINTS, PRIVATE, PROGRAMS

HOSTILE = "tmp/hostile"
MARK = "tmp/hostile-was-loaded"
MODULES = """
import pkgutil, sys
sys.path.append("/{private}")
import usb_proxy
for found in pkgutil.walk_packages(usb_proxy.__path__, "usb_proxy."):
    if not found.name.startswith("usb_proxy.dom0"):
        __import__(found.name)
"""


def check(root: Root) -> None:
    """All start and say one sentence, from fresh byte code, and write nothing where they lie.

    What the caller has in its environment and its folder is not loaded: PYTHONPATH, PYTHONHOME,
    PYTHONSTARTUP, and modules of the names that ours import.
    """
    trap = plant(root)
    before = root.paths()
    for program, code in PROGRAMS.items():
        for environment in ({}, trap):
            done = root.attempt("sh", "-c", f"cd /{HOSTILE}; exec {program}", **environment)
            assert done.returncode == code, (program, environment, done)
            assert len(done.stderr.splitlines()) == (1 if code else 0), (program, done)
            assert not re.search("Traceback|internal error|not found", done.stderr), done
    assert not (root.folder / MARK).exists(), (root.folder / MARK).read_text()
    check_byte_code(root)
    same(root, before)
    first = (root.folder / PRIVATE / "launch").read_text().partition("\n")[0]
    assert first == "#!/usr/bin/python3 -IS"


def plant(root: Root) -> dict[str, str]:
    """Modules that leave a mark, and the environment that would load them."""
    folder = root.folder / HOSTILE
    folder.mkdir(exist_ok=True)
    (root.folder / MARK).unlink(missing_ok=True)
    names = ("posix", "sys", "os", "sitecustomize", "usercustomize", "usb_proxy", "startup")
    for name in names:
        (folder / f"{name}.py").write_text(f"open('/{MARK}', 'a').write('{name} ')\n")
    return {
        "PYTHONPATH": f"/{HOSTILE}",
        "PYTHONHOME": f"/{HOSTILE}",
        "PYTHONSTARTUP": f"/{HOSTILE}/startup.py",
        "PYTHONINSPECT": "1",
        "PYTHONOPTIMIZE": "2",
        "PYTHONPYCACHEPREFIX": f"/{HOSTILE}",
    }


def check_byte_code(root: Root) -> None:
    """Python finds each of our modules compiled for it, as old as its source."""
    modules = MODULES.format(private=PRIVATE)
    told = root.run("sh", "-c", 'exec python3 -ISv -c "$0" 2>&1', modules)
    loaded = re.findall(rf"code object from '?/{PRIVATE}/(\S+?)'?$", told, re.MULTILINE)
    assert len(loaded) > 20, told[-3000:]
    assert [name for name in loaded if not name.endswith(".pyc")] == []
    assert not re.findall(rf"^# (?:wrote|could not).*{PRIVATE}.*", told, re.MULTILINE)


def check_dom0(root: Root, folder: str) -> None:
    """Python finds the extension's entry points and its code where the package has put them."""
    lines = root.run("python3", "-c", ENTRY_POINTS, PYTHONPATH=folder).splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["qubes.ext", "qubes.devices"], lines
    assert lines[2].startswith(folder), lines


def same(root: Root, before: set[str]) -> None:
    """There is what there was before, and nothing else."""
    after = root.paths()
    assert after == before, f"left: {sorted(after - before)}, lost: {sorted(before - after)}"


def debian_tests(root: Root, user: str) -> None:
    """debian/tests in the sources in /srv: the unit tests of what is installed."""
    # Not as the first process, which has no parent to be told of.
    script = "AUTOPKGTEST_TMP=$(mktemp -d) debian/tests/unit || exit"
    in_sources(root, user, script)


def quick_tests(root: Root, user: str) -> None:
    """Those of `make check-quick`, with Debian's pytest; of the linters, those that are there."""
    folders = "tests/dom0 tests/static tests/fuzz tests/docs"
    in_sources(root, user, f"python3 -m pytest -p no:cacheprovider {folders} || exit")


def in_sources(root: Root, user: str, script: str) -> None:
    done = root.attempt("sh", "-c", f"cd /srv/sources; {script}", user=user, HOME="/tmp")
    assert done.returncode == 0, f"{user}: {done.stdout[-5000:]}{done.stderr[-1000:]}"
    assert re.search(r" [1-9]\d+ passed", done.stdout), done.stdout
