# SPDX-License-Identifier: GPL-2.0-or-later
"""The model against the real qubesd; and what only the real one can show."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import MethodType
from typing import Any

import pytest

from tests.dom0.conftest import MODEL, REAL, SOURCES
from tests.dom0.world import World, listener
from usb_proxy.dom0 import questions, services
from usb_proxy.dom0.extension import USBProxyExtension
from usb_proxy.dom0.qubesd import QubesException

real = pytest.mark.skipif(not REAL, reason="no real qubes: set QUBES_CORE_ADMIN to its sources")


def ask(*path: str, **environment: str) -> Any:
    """What the `qubes` of a fresh process says."""
    path += tuple(folder for folder in sys.path if "entry-points" in folder)
    done = subprocess.run(
        [sys.executable, "-m", "tests.dom0.contract", *path],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"QUBES_CORE_ADMIN": ""} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_model_answers() -> None:
    """What the extension relies on, in a word; the rest is compared below."""
    facts = ask(str(MODEL))
    assert facts["one instance"][0] is True
    assert facts["of a parent"] == [True, 3]  # a child's parent has no handlers for it
    assert facts["order"] == ["class", "own", "own", "class"]
    assert facts["async"] == ["slow"]
    assert facts["attach"] == "fine"


@real
def test_the_model_says_what_the_real_one_says() -> None:
    model, true = ask(str(MODEL)), ask(QUBES_CORE_ADMIN=SOURCES or "")
    assert model.keys() == true.keys()
    for name in model:
        assert model[name] == true[name], name


@real
def test_qubesd_finds_the_extension() -> None:
    module: Any = importlib.import_module("qubes.ext")
    assert USBProxyExtension() in module.get_extensions()
    assert SOURCES is None or str(module.__file__).startswith(SOURCES)


@real
def test_handlers_are_hooked_where_qubesd_looks(tmp_path: Path) -> None:
    World(tmp_path)
    local: Any = importlib.import_module("qubes.vm").LocalVM.__handlers__
    system: Any = importlib.import_module("qubes").Qubes.__handlers__
    for event in (
        *("device-list:usb", "device-get:usb", "device-list-attached:usb"),
        *("device-pre-attach:usb", "device-pre-detach:usb", "domain-start", "domain-shutdown"),
        "domain-qdb-change:/qubes-usb-devices",
    ):
        ours = [h for h in local[event] if isinstance(h.__self__, USBProxyExtension)]
        assert len(ours) == 1, event
    assert system["domain-delete"]


@pytest.fixture
def caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Qubes that call services as the real ones do, with a program in the place of qrexec's."""
    world = World(tmp_path)
    program = tmp_path / "qrexec-client"
    program.write_text(
        '#!/bin/sh\necho "$@" >> "$0.log"\ncat >> "$0.log"\n'
        'printf "\\033[1mno USB device" >&2\nyes | head -c 9999\nexit $(cat "$0.code")\n'
    )
    program.chmod(0o700)
    paths = importlib.import_module("qubes.config").system_path
    monkeypatch.setitem(paths, "qrexec_client_path", str(program))
    monkeypatch.setitem(paths, "qrexec_rpc_multiplexer", str(program))
    kinds = [importlib.import_module("qubes.vm." + kind) for kind in ("qubesvm", "adminvm")]
    for vm, kind in ((world.work, kinds[0].QubesVM), (world.dom0, kinds[1].AdminVM)):
        for name in ("run_service", "run_service_for_stdio"):
            setattr(vm, name, MethodType(getattr(kind, name), vm))
        vm.is_paused = lambda: False  # type: ignore[attr-defined]
        vm.is_qrexec_running = lambda stubdom: True  # type: ignore[attr-defined]
    return world


@real
@pytest.mark.parametrize("code", [0, 3])
def test_real_calls(caller: World, tmp_path: Path, code: int) -> None:
    (tmp_path / "qrexec-client.code").write_text(str(code))

    async def story() -> None:
        await services._call(caller.work, "qubes.USBAttach", "sys-usb 2-1", 9, stubdom=True)

    if code:
        with pytest.raises(QubesException, match=r"^work: \[1mno USB device \[UP-913\]$"):
            asyncio.run(story())
    else:
        asyncio.run(story())
        asyncio.run(services._call(caller.dom0, "qubes.USBDetach", "2-1", 9))
    lines = (tmp_path / "qrexec-client.log").read_text().splitlines()
    assert lines[:2] == ["-d work-dm root:QUBESRPC qubes.USBAttach dom0", "sys-usb 2-1"]
    assert lines[2:] == ([] if code else ["qubes.USBDetach dom0 name dom0", "2-1"])


@real
def test_the_real_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    async def answer(*arguments: Any) -> str:
        asked.append(arguments)
        return "allow:home"

    monkeypatch.setattr("qubes.ext.utils.call_socket_service", answer)
    world = World(tmp_path)
    world.seconds = 0
    monkeypatch.setattr(questions, "AGENT", str(tmp_path / "agent"))
    world.ext.assignments.confirm = questions.ask

    async def story() -> None:
        await world.assign(world.work)
        await world.assign(world.home)
        world.plug()
        await asyncio.sleep(0.5)

    with listener(tmp_path / "agent"):
        asyncio.run(story())
    assert world.holder() == "home"
    assert asked[0][3]["targets"] == ["work", "home"]
    assert "Yubico" in asked[0][3]["device_name"]
