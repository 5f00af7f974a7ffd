# SPDX-License-Identifier: GPL-2.0-or-later
"""How often each case has held with the package in `dist`, over all runs of it.

A run that is stopped is gone on with: what has held as often as the environment's `HOLDS` says is
not run again. All outcomes are in `build/faults`, a file for each package.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.qubes import PACKAGES

FOLDER = Path(__file__).parents[2] / "build/faults"


class Outcomes:
    """The plugin: leaves out, takes down, and prints a table at the end."""

    def __init__(self, wanted: int, takes_down: bool) -> None:
        digest = hashlib.sha256()
        for package in sorted(PACKAGES.glob("*.deb")):
            digest.update(package.read_bytes())
        self.path = FOLDER / digest.hexdigest()[:16]
        self.wanted = wanted
        self.takes_down = takes_down
        self.failed: set[str] = set()
        self.run: dict[str, None] = {}

    def found(self) -> Counter[tuple[str, str]]:
        """How often each outcome of each test was seen: by its id and the outcome."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return Counter((case, outcome) for outcome, _, case in (x.partition("\t") for x in lines))

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Leave out what has held often enough."""
        found = self.found()
        done = [item for item in items if found[item.nodeid, "held"] >= self.wanted > 0]
        config.hook.pytest_deselected(items=done)
        items[:] = [item for item in items if item not in done]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take down how a test has ended, once all of it has."""
        if not self.takes_down or report.skipped:
            return
        self.run[report.nodeid] = None
        if report.failed:
            self.failed.add(report.nodeid)
        if report.when == "teardown":
            outcome = "failed" if report.nodeid in self.failed else "held"
            self.failed.discard(report.nodeid)
            FOLDER.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(f"{outcome}\t{report.nodeid}\n")

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> Iterator[None]:
        """That nothing was left to run is no failure."""
        yield
        if self.wanted and exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
            session.exitstatus = pytest.ExitCode.OK

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The table of what was run now, with what is known from before."""
        if not self.run:
            return
        found = self.found()
        terminalreporter.section(f"how often each case has held: {self.path}")
        for case in self.run:
            failed = found[case, "failed"]
            told = f", and failed {failed} times" if failed else ""
            terminalreporter.write_line(f"{found[case, 'held']:3}{told}  {case}")
