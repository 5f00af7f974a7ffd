# SPDX-License-Identifier: GPL-2.0-or-later
"""Cycles of attach, traffic and detach in batches, and what is counted of them.

One cycle is one device: attached, used, and detached or lost. A batch is `WORKERS` devices at the
same time, with `ROUNDS` cycles each; after it nothing may be left in either guest.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tests.lab.errors import LabError
from tests.lab.qubes import Qubes

from . import leaks
from .devices import Device, Wrong, devices
from .faults import ENDS, STRIKES, Attachment, end

WORKERS = 6
ROUNDS = 8
STRIKE_SHARE = 0.25
"""Of the cycles, those that begin with an attach to which something happens."""

BUSY_SHARE = 0.5
"""Of the endings, those that come while the device is in use."""

HURRY_SHARE = 0.5
"""Of the cycles, those that do not wait until the one before has been cleaned up."""


@dataclass
class Limits:
    """When to stop: after so many cycles or seconds, whichever comes first."""

    cycles: int
    seconds: float
    first: int = 0
    """The batch to begin with, to repeat one that failed."""


class Soak:
    """One run, from one seed; `say` gets a line for each batch and each failure.

    `names` limits it to the devices that it names.
    """

    def __init__(
        self, qubes: Qubes, seed: int, say: Callable[[str], None], names: str = ""
    ) -> None:
        self.qubes, self.seed, self._say = qubes, seed, say
        self.cycles = 0
        self.strikes: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.failures: list[str] = []
        self.samples: dict[str, list[leaks.Sample]] = {"sys-usb": [], "work": []}
        self._lock = threading.Lock()
        self._devices = [d for d in devices(qubes) if d.name in (names or d.name)]

    def run(self, limits: Limits) -> list[str]:
        """All of it; gives what went wrong."""
        stop = time.monotonic() + limits.seconds
        for device in self._devices:
            device.plug()
        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(self._warm_up, self._devices))
        self._look("the beginning")
        batch = limits.first
        while self.cycles < limits.cycles and time.monotonic() < stop:
            self._batch(batch, limits.cycles - self.cycles)
            self._look(f"batch {batch}")
            batch += 1
            self._say(
                f"batch {batch}: {self.cycles} cycles, {len(self.failures)} failures,"
                f" {time.monotonic() - stop + limits.seconds:.0f} s"
            )
        for name, samples in self.samples.items():
            self.failures += leaks.found(name, samples, self.cycles)
        return self.failures

    def _warm_up(self, device: Device) -> None:
        """Attach a device once, so that its drivers are loaded and all that stays is there."""
        it = Attachment(self.qubes, device, random.Random(self.seed))
        it.must("attach")
        device.traffic(it.chance)
        it.must("take back")

    def _batch(self, number: int, left: int) -> None:
        chance = random.Random(f"{self.seed}-{number}")
        chosen = chance.sample(self._devices, min(WORKERS, len(self._devices)))
        shares = [min(ROUNDS, (left + n) // len(chosen)) for n in range(len(chosen))]
        with ThreadPoolExecutor(WORKERS) as pool:
            for device, rounds in zip(chosen, shares, strict=True):
                pool.submit(self._work, f"{number}", device, rounds)

    def _work(self, batch: str, device: Device, rounds: int) -> None:
        """One device's cycles of a batch."""
        chance = random.Random(f"{self.seed}-{batch}-{device.name}")
        for number in range(rounds):
            steps: list[str] = []
            try:
                self._cycle(Attachment(self.qubes, device, chance), steps)
            except (Wrong, LabError) as error:
                where = f"batch {batch}, {device.name} {number}, {' > '.join(steps)}"
                self._fail(f"{where}: {error}")
                self._rescue(device)
            except Exception as error:
                self._fail(f"batch {batch}, {device.name}, {steps}: defect of the test: {error!r}")
                raise
            with self._lock:
                self.cycles += 1
                self.kinds[device.name] += 1

    def _cycle(self, it: Attachment, steps: list[str]) -> None:
        """All that is random is drawn here in the same order, whatever happens."""
        chance = it.chance
        strike = chance.choice(list(STRIKES)) if chance.random() < STRIKE_SHARE else None
        how, busy = end(it), chance.random() < BUSY_SHARE
        hurry = [chance.random() < HURRY_SHARE for _ in range(2)]
        it.chance = random.Random(chance.random())
        if strike:
            steps.append(strike)
            STRIKES[strike](it)
            self._count(self.strikes, strike)
            it.call("take back")
            if not hurry[0]:
                it.settle()
        steps.append("attach")
        it.attach()
        steps.append("traffic")
        it.device.traffic(it.chance)
        steps.append(how)
        using = it.device.keep_busy() if busy else None
        try:
            ENDS[how](it)
        finally:
            if using:
                using.cancel()
        self._count(self.ends, how)
        if it.has_waited:
            self._count(self.ends, "(a next attach had to wait)")
        if not hurry[1]:
            steps.append("settle")
            it.settle()

    def _count(self, counter: Counter[str], name: str) -> None:
        with self._lock:
            counter[name] += 1

    def _fail(self, text: str) -> None:
        text = text.partition("\n--- console of ")[0]
        with self._lock:
            self.failures.append(text)
        self._say(f"FAILED (SEED={self.seed}): {text}")

    def _rescue(self, device: Device) -> None:
        """Bring a device back to where a cycle may begin; what does not come back is a failure."""
        it = Attachment(self.qubes, device, random.Random(0))
        try:
            it.call("detach")
            it.call("take back")
            with contextlib.suppress(LabError):  # It may be out already.
                device.unplug()
            device.plug()
            it.settle()
        except (Wrong, LabError) as error:
            self._fail(f"{device.name} is not to be had any more: {error}")

    def _look(self, when: str) -> None:
        """After a batch: nothing left, no complaint, and a sample of what is in use."""
        for device in self._devices:
            try:
                Attachment(self.qubes, device, random.Random(0)).settle()
            except Wrong as error:
                self._fail(f"{when}: {device.name}: {error}")
        for line in self.qubes.await_clean(60):
            self._fail(f"{when}: left over: {line}")
        for guest in (self.qubes.backend, self.qubes.frontend):
            for line in leaks.complaints(guest):
                self._fail(f"{when}: {line}")
            self.samples[guest.name].append(leaks.look(guest, self.samples[guest.name][:1]))

    def report(self) -> str:
        """What was done, and how it went."""
        lines = [f"seed {self.seed}: {self.cycles} cycles, {len(self.failures)} failures", ""]
        for title, counter in (
            ("device", self.kinds),
            ("during the attach", self.strikes),
            ("the end", self.ends),
        ):
            lines.append(title)
            lines += [f"  {name:32} {count:5}" for name, count in sorted(counter.items())]
        for name, samples in self.samples.items():
            lines += leaks.table(name, samples) if samples else []
        return "\n".join([*lines, "", *self.failures])
