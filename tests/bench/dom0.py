# SPDX-License-Identifier: GPL-2.0-or-later
"""What the extension costs qubesd: looking up a name, and listing a hundred devices.

`python3 -m tests.bench.dom0 [USB.IDS]`, next to loading that file into a dictionary as ratios.
"""

import gc
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from tests.dom0 import conftest  # noqa: F401 (which makes `qubes` importable)
from tests.dom0.world import DESC, INTERFACES, ROOT, World
from usb_proxy.dom0.usb_ids import USB_IDS, UsbIds

DEVICES = 100
ROUNDS = 20


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


def seconds(action: Callable[[], object], rounds: int = ROUNDS) -> float:
    """The median time of an action."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def memory(action: Callable[[], object]) -> int:
    """Bytes that are still there after an action whose result is kept."""
    gc.collect()
    tracemalloc.start()
    kept = action()
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del kept
    return size


def main(arguments: list[str]) -> int:
    """Print the table."""
    path = Path(arguments[1]) if arguments[1:] else USB_IDS
    names = load(path)
    products = [key for key in names if key[1]]
    wanted = products[:: max(1, len(products) // DEVICES)][:DEVICES]
    ids = UsbIds(path)
    lookup = seconds(lambda: [ids.names(*key) for key in wanted]) / len(wanted)
    plain = seconds(lambda: load(path), 5)
    print(f"{len(products)} products in {path}")
    print(
        f"lookup of one product   {1e3 * lookup:8.2f} ms  {memory(lambda: ids.names(*wanted[0]))} B"
    )
    print(f"loading a dictionary    {1e3 * plain:8.2f} ms  {memory(lambda: load(path))} B")
    print(f"ratio                   {lookup / plain:8.4f}")

    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        for n in range(DEVICES):
            key = f"{ROOT}/{n // 10 + 1}-{n % 10 + 1}"
            world.usb.untrusted_qdb.update({f"{key}/desc": DESC, f"{key}/interfaces": INTERFACES})
        listing = seconds(lambda: list(world.usb.devices["usb"]))
        known = seconds(lambda: [device.device_id for device in world.usb.devices["usb"]])
    print(f"listing {DEVICES} devices     {1e3 * listing:8.2f} ms")
    print(f"the same with their ids {1e3 * known:8.2f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
