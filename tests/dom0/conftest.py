# SPDX-License-Identifier: GPL-2.0-or-later
"""Which `qubes` the tests run in: QUBES_CORE_ADMIN=DIR, an installed one, or else the model."""

from __future__ import annotations

import importlib.util
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

MODEL = Path(__file__).parent / "qubes-model"
SOURCES = os.environ.get("QUBES_CORE_ADMIN") or None

if SOURCES:
    sys.path.insert(0, SOURCES)
elif importlib.util.find_spec("qubes") is None:
    sys.path.insert(0, str(MODEL))
REAL = SOURCES is not None or str(MODEL) not in sys.path

# What the real one imports, and these tests never use.
for missing in ("libvirt", "qrexec.server") if REAL else ():
    try:
        importlib.import_module(missing)
    except ImportError:
        stub = types.ModuleType(missing)
        stub.call_socket_service = None  # type: ignore[attr-defined]
        sys.modules.setdefault(missing.split(".")[0], types.ModuleType(missing.split(".")[0]))
        sys.modules[missing] = stub


@pytest.fixture(autouse=True, scope="session")
def entry_points(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the package installs: qubesd finds the device class by it."""
    folder = tmp_path_factory.mktemp("entry-points")
    (folder / "under_test-1.dist-info").mkdir()
    (folder / "under_test-1.dist-info/METADATA").write_text("Name: under_test\nVersion: 1\n")
    (folder / "under_test-1.dist-info/entry_points.txt").write_text(
        "[qubes.devices]\nusb = usb_proxy.dom0.device:USBDevice\n"
        "[qubes.ext]\nusb = usb_proxy.dom0.extension:USBProxyExtension\n"
    )
    sys.path.append(str(folder))
    yield
    sys.path.remove(str(folder))
