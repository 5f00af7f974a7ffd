# SPDX-License-Identifier: GPL-2.0-or-later
"""qvm-usb-doctor with the real client library: CORE_ADMIN_CLIENT, a checkout of it.

What qubesd would answer is a table here, in the Admin API's own words (doc/ of core-admin).
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from .conftest import part

sys.path.insert(0, str(part("CORE_ADMIN_CLIENT", "qubesadmin/app.py")))

import qubesadmin.app  # type: ignore[import-not-found]

from usb_proxy.dom0 import doctor, rules

DEVICE = (
    "2-1:46f4:0001:stick:u080650 device_id='46f4:0001:stick:u080650' port_id='2-1' devclass='usb' "
    "backend_domain='sys-usb' interfaces='u080650' product='STICK' vendor='QEMU'"
)
SAYS = "4.4.0\n" + json.dumps(
    {"findings": [{"check": "x", "level": "ok", "text": "all is well", "repair": None}]}
)


class Qubesd(qubesadmin.app.QubesBase):  # type: ignore[misc]
    """The client library with a qubesd of two qubes."""

    qubesd_connection_type = "socket"
    denied = ""

    def qubesd_call(
        self, dest: str, method: str, arg: str | None = None, *_: Any, **__: Any
    ) -> bytes:
        if method.endswith(".property.Get"):
            return {
                "memory": b"default=False type=int 400",
                "virt_mode": b"default=False type=str hvm",
                "template": b"default=False type=vm fedora-43",
                "devices_denied": b"default=False type=str " + self.denied.encode(),
            }[str(arg)]
        if method == "admin.vm.device.usb.Available" and dest == "sys-usb":
            return DEVICE.encode() + b"\n"
        return {
            "admin.vm.List": b"dom0 class=AdminVM state=Running\n"
            b"sys-usb class=AppVM state=Running\nwork class=AppVM state=Running\n"
            b"fedora-43 class=TemplateVM state=Halted\n",
            "admin.vm.CurrentState": b"power_state=Running mem=400",
        }.get(method, b"")

    def run_service(self, dest: str, service: str, **options: Any) -> subprocess.Popen[bytes]:
        assert options.pop("user") == "root" and options.pop("autostart") is False
        return subprocess.Popen(["sh", "-c", 'cat >/dev/null; echo "$1"', "sh", SAYS], **options)


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Qubesd:
    """Without dom0's policy, which tests/dom0/test_rules.py has."""
    monkeypatch.setattr(rules, "examine", lambda *_: ())
    return Qubesd()


def test_nothing_wrong(app: Qubesd) -> None:
    found = list(doctor.examine(app, "work", "sys-usb:2-1"))
    assert {each.level for each in found} == {"ok"}, found
    assert "all is well" in {each.text for each in found}
    assert any("QEMU" in each.text for each in found)


def test_all_that_are_possible_now(app: Qubesd) -> None:
    assert {each.side for each in doctor.examine(app, None, None)} == {"sys-usb"}


def test_denied(app: Qubesd) -> None:
    app.denied = "u08****u03****"
    (wrong,) = [e for e in doctor.examine(app, "work", "sys-usb:2-1") if e.level == "error"]
    assert wrong.text.endswith("names this one: u08****")
    assert wrong.repair == "qvm-prefs work devices_denied 'u03****'"


@pytest.mark.parametrize(("refused", "code"), [("admin.vm.CurrentState", 9), ("admin.vm.List", 7)])
def test_an_admin_qube_with_few_rights(
    app: Qubesd,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    refused: str,
    code: int,
) -> None:
    answer = app.qubesd_call

    def qubesd_call(dest: str, method: str, *rest: Any, **options: Any) -> bytes:
        if method == refused:
            raise qubesadmin.exc.QubesDaemonAccessError("Got empty response from qubesd")
        return answer(dest, method, *rest, **options)

    monkeypatch.setattr(app, "qubesd_call", qubesd_call)
    monkeypatch.setattr(qubesadmin, "Qubes", lambda: app)
    assert doctor.main(["work", "sys-usb:2-1"]) == code
    said = capsys.readouterr().out
    assert "does not run" not in said
    assert ("qubesd does not say what has to be known" in said) == (code == 7)


def test_no_device(app: Qubesd) -> None:
    (wrong,) = [e for e in doctor.examine(app, "work", "sys-usb:1-1") if e.level == "error"]
    assert wrong.text == "there is no device in 1-1; the qube has: 2-1"
