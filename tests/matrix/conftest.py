# SPDX-License-Identifier: GPL-2.0-or-later
"""Each suite builds once, whoever of several processes asks for it first."""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.packaging.machine import TOP, Root, need, need_root

from .build import Built, build
from .roots import BUILDERS, NEWEST, copy_of, suites

Builder = Callable[[str], Built]
Roots = Callable[[str, str], Root]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this run have, and other accounts reach."""
    need_root()
    need("unshare", "setpriv")
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    for each in (folder, folder.parent):
        each.chmod(0o755)
    (folder / "matrix").mkdir(exist_ok=True)
    return folder / "matrix"


@pytest.fixture
def a_root(tmp_path: Path) -> Iterator[Roots]:
    """A root to change: call it with a kind and a suite, once."""
    with ExitStack() as stack:
        yield lambda name, suite: stack.enter_context(copy_of(name, suite, tmp_path / "place"))


@pytest.fixture(scope="session")
def tarball() -> Path:
    """What `make dist` wrote."""
    version = (TOP / "version").read_text().strip()
    path = TOP / f"dist/qubes-usb-proxy-{version}.tar.gz"
    assert path.exists(), "`make dist` writes it"
    return path


@pytest.fixture(scope="session")
def built(shared: Path, tarball: Path) -> Builder:
    """The packages that a suite makes: call it with the suite's name."""

    def get(suite: str) -> Built:
        with (shared / f"lock-{suite}").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            note = shared / f"built-{suite}"
            if not note.exists():
                note.write_text(json.dumps(build(suite, tarball, shared / suite)))
            failure = json.loads(note.read_text())
        if failure is not None:
            pytest.fail(failure, pytrace=False)
        return Built(suite, shared / suite)

    return get


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`builder` and `target` are suites in which packages are built and installed."""
    for name, known in (
        ("builder", BUILDERS),
        ("target", BUILDERS),
        ("system", (*BUILDERS, NEWEST)),
    ):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, suites(*known))
