# SPDX-License-Identifier: GPL-2.0-or-later
"""The tests that dom0's package registers for real machines, as they are, in the lab."""

from __future__ import annotations

import asyncio
import configparser
import os
from collections.abc import Coroutine, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.dom0.conftest import entry_points
from tests.lab.qubes import PACKAGES

from .dom0 import GuestDatabase, PolicyLab
from .extra import ExtraTestCase, Machine, provide

__all__ = ["entry_points"]

POINTS = Path(__file__).parents[2] / "usb_proxy/dom0/entry_points.txt"
TEMPLATES = {"qubes.tests.extra": "", "qubes.tests.extra.for_template": "lab"}

provide()
from usb_proxy.dom0 import platform_case  # noqa: E402 (which takes what was provided)

points = configparser.ConfigParser()
points.read(POINTS)
for group, template in TEMPLATES.items():
    # As load_tests of qubes/tests/extra.py does, and create_testcases_for_templates.
    for each in EntryPoint("usbproxy", points[group]["usbproxy"], group).load()():
        name = f"{each.__name__}_{template}" if template else each.__name__
        globals()[name] = type(name, (each,), {"template": template}) if template else each
del each


@pytest.fixture(autouse=True, scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("policy.d")
    with PolicyLab(PACKAGES, os.environ.get("LAB_SUITE", "bookworm"), print) as lab:
        ExtraTestCase.machine = Machine(lab, folder)
        yield
        ExtraTestCase.machine.loop.close()


def test_a_database_that_does_not_answer_is_asked_again() -> None:
    guest = mock.Mock()
    guest.database.side_effect = [{"/a": b"old"}, OSError, {"/a": b"new"}]
    database = GuestDatabase(guest)
    assert database.read("/a") == b"old"
    database.stale = 0.0
    with pytest.raises(OSError):
        database.read("/a")
    assert database.read("/a") == b"new"


def test_the_stick_is_plugged_in_when_qubesd_has_seen_it() -> None:
    """What a test did before that would be done to a stick that nobody has told of."""
    case = platform_case.USBTestCase()
    turns: list[int] = []

    def do(work: Coroutine[Any, Any, Any]) -> None:
        asyncio.run(work)
        turns.append(1)
        if len(turns) == 3:
            case.note_list(None, "device-added:usb")

    stubs: dict[str, Any] = {
        "shell": mock.Mock(),
        "do": do,
        "device": mock.Mock(),
        "backend": None,
        "listed": None,
    }
    with mock.patch.multiple(case, create=True, **stubs):
        case.plug()
    assert len(turns) == 3
