# SPDX-License-Identifier: GPL-2.0-or-later
"""The benchmark's guest, seen from the host: what runs in it, and what is plugged into it."""

import io
import json
import os
import queue
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.lab.errors import LabError
from tests.lab.guests import Guest
from tests.lab.image import Progress
from tests.lab.virtual import virtual_guest

from .report import Results

TOP = Path(__file__).parents[2]
STICKS = {**{f"s{n}": ("xhci.0", str(n)) for n in range(1, 11)}, "high": ("ehci.0", "1")}
"""Block node and device: controller and port; see `inside/cases.py`."""

PLATFORM_PROGRAMS = (
    "usr/lib/qubes/qrexec-agent",
    "usr/bin/qrexec-client",
    "usr/bin/qrexec-client-vm",
    "usr/bin/qubesdb-daemon",
    *(f"usr/bin/qubesdb-{name}" for name in ("list", "read", "rm", "watch", "write")),
    "usr/sbin/qrexec-daemon",
)
GIB = 1 << 30
WAKE_SECONDS = 3


class Bench:
    """A running guest with the benchmark and the trees of some implementations in it."""

    def __init__(
        self,
        guest: Guest,
        trees: dict[str, Path],
        wishes: "queue.Queue[str]",
        platform: Path | None,
    ) -> None:
        self._guest, self._wishes = guest, wishes
        # Nobody asks what the stand-in for the platform's rules would publish here.
        guest.run("rm /usr/lib/udev/rules.d/99-lab-usb.rules; udevadm control --reload")
        guest.run("tar -x -C /opt", stdin=pack(trees, platform))
        self._trees = [f"{name}=/opt/bench/trees/{name}" for name in trees]
        for node in STICKS:
            guest.add_zeroes(node, GIB)

    def run(self, *arguments: str, progress: Progress) -> Results:
        """Measure; gives what the guest's part prints."""
        output = self._start("tests.bench.inside", *arguments, "--", *self._trees, say=progress)
        found: Results = json.loads(output)
        return found

    def trace(self, progress: Progress) -> str:
        """One attach under strace, see `inside/trace.py`."""
        tree = self._trees[0].partition("=")[2]
        return self._start("tests.bench.inside.trace", tree, say=progress).decode()

    def cases(self, module: str, *wanted: str, progress: Progress) -> dict[str, str]:
        """What was wrong with each case of a module, "" if nothing; see `inside/real.py`."""
        tree = self._trees[0].partition("=")[2]
        found: dict[str, str] = json.loads(self._start(module, tree, *wanted, say=progress))
        return found

    def _start(self, module: str, *arguments: str, say: Progress) -> bytes:
        """Run a module in the guest, and do what it wishes meanwhile."""
        command = " ".join(["python3 -Bm", module, *arguments])
        call = self._guest.start_command(f"cd /opt/bench && exec {command} 2>&1 >/tmp/results")
        while not call.finished:
            try:
                self._fulfil(self._wishes.get(timeout=WAKE_SECONDS), say)
            except queue.Empty:
                # Seen once, and not explained: the guest slept through a timer until it was called.
                call.wake()
        done = call.wait(1)
        if done.code:
            raise self._guest.failure(f"{command}: {done.text}")
        return self._guest.read("/tmp/results")

    def _fulfil(self, key: str, progress: Progress) -> None:
        _, _, wish, what = key.split("/", 3)
        if (wish, what) == ("plug", "card"):
            self._guest.plug_audio(what, Path(os.devnull), "xhci.0", "2")
        elif wish == "plug":
            bus, port = STICKS[what]
            self._guest.plug("usb-storage", what, bus, port, drive=what, serial=what)
        elif wish == "unplug":
            self._guest.unplug(what)
        elif wish == "say":
            progress(what.replace("/", " "))
        else:
            raise LabError(f"the benchmark wishes {key}")


def pack(trees: dict[str, Path], platform: Path | None = None) -> bytes:
    """A tarball of what the guest needs."""

    def without_byte_code(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if "__pycache__" in member.name else member

    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name in ("tests/__init__.py", "tests/lab", "tests/bench", "usb_proxy"):
            tar.add(TOP / name, f"bench/{name}", filter=without_byte_code)
        for name, tree in trees.items():
            tar.add(tree, f"bench/trees/{name}")
        if platform is not None:
            tar.add(platform, "bench/platform")
    return data.getvalue()


def real_platform() -> Path | None:
    """The tree that `PLATFORM` names, see CONTRIBUTING.md; LabError if it lacks a program."""
    if not os.environ.get("PLATFORM"):
        return None
    tree = Path(os.environ["PLATFORM"])
    missing = [name for name in PLATFORM_PROGRAMS if not os.access(tree / name, os.X_OK)]
    if missing:
        raise LabError(f"PLATFORM={tree} has no {', '.join(missing)}")
    return tree


def install(folder: Path) -> Path:
    """This project's program as `make install-vm` leaves it in a folder."""
    subprocess.run(["make", "--silent", "-C", TOP, "install-vm", f"DESTDIR={folder}"], check=True)
    return folder


@contextmanager
def running(
    trees: dict[str, Path], suite: str, progress: Progress, platform: Path | None = None
) -> Iterator[Bench]:
    """Boot the guest; `platform` has real programs in the place of the stand-ins."""
    wishes: queue.Queue[str] = queue.Queue()

    def changed(_guest: str, key: str) -> None:
        if key.startswith("/bench/"):
            wishes.put(key)

    with virtual_guest(suite, progress, changed) as guest:
        yield Bench(guest, trees, wishes, platform)


def measure(
    trees: dict[str, Path],
    cases: Sequence[str],
    *,
    runs: int,
    count: int,
    suite: str,
    progress: Progress,
) -> Results:
    """Boot the guest, and measure some cases in it."""
    with running(trees, suite, progress, real_platform()) as bench:
        return bench.run(str(runs), str(count), *cases, progress=progress)
