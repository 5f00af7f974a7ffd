# SPDX-License-Identifier: GPL-2.0-or-later
"""What the extension costs qubesd: looking up a name, and listing a hundred devices."""

import gc
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from tests.dom0 import conftest  # noqa: F401 (which makes `qubes` importable)
from tests.dom0.world import DESC, INTERFACES, ROOT, World
from usb_proxy.dom0.usb_ids import UsbIds

DEVICES = 100
ROUNDS = 10


def load(path: Path) -> dict[tuple[str, str], str]:
    """The plain way: all products of the file in a dictionary."""
    names = {}
    vendor = ""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("C "):
            break
        if line.startswith("\t") and not line.startswith("\t\t"):
            names[vendor, line[1:5]] = line[7:]
        elif line[:4].isalnum():
            vendor = line[:4]
            names[vendor, ""] = line[6:]
    return names


def milliseconds(action: Callable[[], object], rounds: int = ROUNDS) -> list[float]:
    """The times of an action."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        action()
        times.append(1e3 * (time.perf_counter() - start))
    return times


def memory(action: Callable[[], object]) -> int:
    """Bytes that are still there after an action whose result is kept."""
    gc.collect()
    tracemalloc.start()
    kept = action()
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del kept
    return size


def measure(path: Path) -> dict[str, list[float]]:
    """The rows of the table, in milliseconds of this machine and bytes, with the names of `path`.

    They are of the host's clock, and so mean something only next to each other.
    """
    names = load(path)
    products = [key for key in names if key[1]]
    wanted = products[:: max(1, len(products) // DEVICES)][:DEVICES]
    ids = UsbIds(path)
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        for n in range(DEVICES):
            key = f"{ROOT}/{n // 10 + 1}-{n % 10 + 1}"
            world.usb.untrusted_qdb.update({f"{key}/desc": DESC, f"{key}/interfaces": INTERFACES})
        listing = milliseconds(lambda: list(world.usb.devices["usb"]))
        known = milliseconds(lambda: [device.device_id for device in world.usb.devices["usb"]])
    lookup = milliseconds(lambda: [ids.names(*key) for key in wanted])
    return {
        "dom0: one product's name, ms": [each / len(wanted) for each in lookup],
        "dom0: all products in a dictionary instead, ms": milliseconds(lambda: load(path)),
        "dom0: one product's name, bytes": [memory(lambda: ids.names(*wanted[0]))],
        "dom0: all products in a dictionary instead, bytes": [memory(lambda: load(path))],
        f"dom0: listing {DEVICES} devices, ms": listing,
        f"dom0: listing {DEVICES} devices with their ids, ms": known,
    }
