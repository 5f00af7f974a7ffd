# SPDX-License-Identifier: GPL-2.0-or-later
"""Names from usb.ids: the right line, safe characters, and no file needed."""

from __future__ import annotations

import io
import os
import time
import tracemalloc
from pathlib import Path

import pytest

from usb_proxy.dom0.usb_ids import NAME_LIMIT, USB_IDS, UsbIds

TEXT = """# comment 1234  not a vendor
0001  First
\t0407  Of the first
1050  Yubico.com, é "AS'
\t0407  Yubikey 4
\t\t00  0407  an interface
1051  Next
\t0408  Only here

C 03  Human Interface Device
\t01  Boot
\t\t01  Keyboard
HUT 01  Generic
\t1050  Not a product
"""


@pytest.fixture
def usb_ids(tmp_path: Path) -> UsbIds:
    path = tmp_path / "usb.ids"
    path.write_text(TEXT + f"fffe  {'x' * 999}\n\tfffe  no newline at the end")
    return UsbIds(path)


@pytest.mark.parametrize(
    ("vendor", "product", "names"),
    [
        ("1050", "0407", ("Yubico.com, _ \"AS'", "Yubikey 4")),
        ("0001", "0407", ("First", "Of the first")),
        ("1050", "0408", ("Yubico.com, _ \"AS'", None)),
        ("1051", "1050", ("Next", None)),
        ("1234", "0407", (None, None)),
        ("fffe", "fffe", ("x" * NAME_LIMIT, "no newline at the end")),
    ],
)
def test_names(usb_ids: UsbIds, vendor: str, product: str, names: tuple[str, str]) -> None:
    assert usb_ids.names(vendor, product) == names


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff" * 99])
def test_a_file_that_is_missing_or_broken(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "usb.ids"
    if content is not None:
        path.write_bytes(content)
    assert UsbIds(path).names("1050", "0407") == (None, None)


def test_a_lookup_is_quick_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "usb.ids"
    vendors = [
        f"{v:04x}  Vendor {v}\n" + "".join(f"\t{p:04x}  Product {p}\n" for p in range(6))
        for v in range(1, 3500)
    ]
    path.write_text("# head\n" + "".join(vendors) + "\nC 00  end\n")
    usb_ids = UsbIds(path)
    files = len(os.listdir("/proc/self/fd"))
    assert usb_ids.names("0dab", "0005") == ("Vendor 3499", "Product 5")
    tracemalloc.start()
    started = time.perf_counter()
    for _ in range(100):
        usb_ids.names("0dab", "0005")
    took = time.perf_counter() - started
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert took < 1.0  # a hundred of them
    assert kept < 10_000
    assert peak < 50_000 + io.DEFAULT_BUFFER_SIZE  # 128 KiB from Python 3.14 on
    assert len(os.listdir("/proc/self/fd")) == files


@pytest.mark.skipif(not USB_IDS.exists(), reason="no hwdata package here")
def test_the_real_file() -> None:
    assert UsbIds().names("1d6b", "0002") == ("Linux Foundation", "2.0 root hub")
