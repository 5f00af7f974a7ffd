# SPDX-License-Identifier: GPL-2.0-or-later
"""qvm-usb-doctor, on a client library of this test's own; tests/real has the real one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usb_proxy.dom0 import asking, doctor, rules, showing
from usb_proxy.dom0.asking import Finding, NoAnswerError

HEALTHY = {
    "version": 1,
    "findings": [{"check": "qrexec", "level": "ok", "text": "qrexec is there", "repair": None}],
}


class Interface:
    """Seven characters, compared one by one (DeviceInterface.matches)."""

    def __init__(self, encoding: str) -> None:
        self.encoding = encoding

    def __repr__(self) -> str:
        return self.encoding

    def matches(self, other: Interface) -> bool:
        return all(a in ("*", b) for a, b in zip(self.encoding, other.encoding, strict=True))

    @staticmethod
    def from_str_bulk(text: str) -> list[Interface]:
        return [Interface(text[i : i + 7]) for i in range(0, len(text), 7)]


class Device(SimpleNamespace):
    def matches(self, other: Device) -> bool:
        return self.port_id == other.port_id  # type: ignore[no-any-return]


class Qube:
    def __init__(self, name: str, **settings: Any) -> None:
        self.name, self.klass, self.template = name, "AppVM", None
        self.state, self.memory, self.devices_denied = "Running", 400, ""
        self.says = f"4.4.0\n{json.dumps(HEALTHY)}"
        self.code = 0
        self.usb: dict[str, list[Device]] = {}
        self.pci: dict[str, list[Any]] = {}
        self.distribution, self.stubdom, self.virt_mode = "fedora", "", "pvh"
        self.refuses: Any = None
        self.__dict__.update(settings)
        self.asked: dict[str, Any] = {}

    def __str__(self) -> str:
        return self.name

    def is_running(self) -> bool:
        return self.state == "Running"

    def get_power_state(self) -> str:
        return self.state

    @property
    def features(self) -> Any:
        found = {"os-distribution": self.distribution, "stubdom-qrexec": self.stubdom}
        return SimpleNamespace(check_with_template=found.get)

    @property
    def devices(self) -> Any:
        def collection(devclass: str) -> Any:
            found: dict[str, list[Any]] = {"usb": self.usb, "pci": self.pci}[devclass]
            kinds = ("exposed", "attached", "assigned")
            return SimpleNamespace(
                **{
                    f"get_{kind}_devices": self.refuses or (lambda kind=kind: found.get(kind, []))
                    for kind in kinds
                }
            )

        return {"usb": collection("usb"), "pci": collection("pci")}

    def run_service(self, service: str, **options: Any) -> subprocess.Popen[bytes]:
        self.asked = {"service": service, **options}
        program = 'cat >/dev/null; printf %s "$1"; exit $2'
        pipes = {name: options[name] for name in ("stdin", "stdout", "stderr")}
        return subprocess.Popen(["sh", "-c", program, "sh", self.says, str(self.code)], **pipes)


class Domains(dict[str, Qube]):
    def __iter__(self) -> Any:
        return iter(self.values())


def app(*qubes: Qube, dom0: bool = True) -> Any:
    domains = Domains({qube.name: qube for qube in qubes})
    return SimpleNamespace(domains=domains, qubesd_connection_type="socket" if dom0 else "qrexec")


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    qubesadmin = ModuleType("qubesadmin")
    exc = ModuleType("qubesadmin.exc")
    exc.QubesException = type("QubesException", (Exception,), {})  # type: ignore[attr-defined]
    protocol = ModuleType("qubesadmin.device_protocol")
    protocol.DeviceInterface = Interface  # type: ignore[attr-defined]
    qubesadmin.device_protocol = protocol  # type: ignore[attr-defined]
    for module in (qubesadmin, exc, protocol):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def stick(backend: Qube, port: str = "2-1") -> Device:
    return Device(
        backend_domain=backend,
        port_id=port,
        description="Kingston DataTraveler 1234567",
        interfaces=[Interface("u080650")],
    )


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(rules, "examine", lambda *call: [Finding("dom0", "ok", f"policy: {call}")])
    usb, work = Qube("sys-usb"), Qube("work", template=Qube("fedora-43", klass="TemplateVM"))
    usb.usb["exposed"] = [stick(usb)]
    return app(usb, work, Qube("dom0", klass="AdminVM"))


def found(machine: Any, qube: str | None = "work", device: str | None = "sys-usb:2-1") -> Any:
    return {
        (each.side, each.level, each.text): each.repair
        for each in doctor.examine(machine, qube, device)
    }


def wrong(machine: Any, *arguments: Any) -> list[tuple[str, str]]:
    return [(side, text) for side, level, text in found(machine, *arguments) if level == "error"]


def test_nothing_wrong(machine: Any) -> None:
    levels = {level for _, level, _ in found(machine)}
    assert levels == {"ok"}
    assert machine.domains["work"].asked["service"] == "qubes.VMShell"
    assert machine.domains["work"].asked["user"] == "root"
    assert machine.domains["work"].asked["autostart"] is False


def test_an_admin_qube_chooses_no_user(machine: Any) -> None:
    machine.qubesd_connection_type = "qrexec"
    assert ("dom0", "warning", "dom0's policy cannot be seen from this qube") in found(machine)
    assert "user" not in machine.domains["work"].asked


def test_all_that_are_possible_now(machine: Any) -> None:
    """Without a name: every backend, and every qube that has a device or is to have one."""
    machine.domains["work"].usb["assigned"] = [stick(machine.domains["sys-usb"])]
    machine.domains["idle"] = Qube("idle", says="")
    sides = {side for side, _, _ in found(machine, None, None)}
    assert sides == {"sys-usb", "work"}


@pytest.mark.parametrize(
    ("change", "side", "text", "repair"),
    [
        (
            {"says": "\n"},
            "work",
            "qubes-usb-proxy is not installed in fedora-43",
            "qvm-run -p -u root fedora-43 'dnf -y install qubes-usb-proxy' && "
            "qvm-shutdown --wait fedora-43 work && qvm-start work",
        ),
        (
            {"says": "\n", "distribution": "haiku"},
            "work",
            "qubes-usb-proxy is not installed in fedora-43",
            "",
        ),
        (
            {"state": "Halted"},
            "work",
            "the qube does not run (Halted)",
            "qvm-start work",
        ),
        (
            {"state": "Paused"},
            "work",
            "the qube does not run (Paused)",
            "qvm-unpause work",
        ),
        (
            {"devices_denied": "u03****u08****"},
            "work",
            "the qube's list of denied devices names this one: u08****",
            "qvm-prefs work devices_denied 'u03****'",
        ),
    ],
)
def test_what_is_wrong(
    machine: Any, change: dict[str, Any], side: str, text: str, repair: str
) -> None:
    machine.domains["work"].__dict__.update(change)
    assert found(machine)[side, "error", text] == repair
    assert not subprocess.run(["bash", "-n", "-c", repair], check=False).returncode


@pytest.mark.parametrize(("qube", "device"), [("work", "sys-usb:2-1"), (None, None)])
def test_what_may_not_be_seen_is_unknown(
    machine: Any, qube: str | None, device: str | None
) -> None:
    """From an admin qube: nothing is wrong with what it cannot see."""

    def refuse() -> None:
        raise sys.modules["qubesadmin.exc"].QubesException("Got empty response from qubesd")

    for vm in machine.domains:
        vm.refuses = refuse
    seen = found(machine, qube, device)
    assert not [each for each in seen if each[1] == "error"]
    what = "which USB devices are exposed cannot be seen from here: Got empty response from qubesd"
    assert ("sys-usb", "warning", what) in seen


class Unseen:
    """A device of dom0, of which nothing may be seen (qubesadmin/devices.py)."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    @property
    def device(self) -> None:
        raise self._error


@pytest.mark.parametrize("kind", ["QubesException", "ProtocolError"])
def test_a_controller_that_may_not_be_seen(machine: Any, kind: str) -> None:
    known = {"ProtocolError": AssertionError, **vars(sys.modules["qubesadmin.exc"])}
    machine.domains["sys-net"] = Qube("sys-net", pci={"assigned": [Unseen(known[kind]("refused"))]})
    seen = found(machine, None, None)
    what = "which PCI devices are USB controllers cannot be seen from here: refused"
    assert ("sys-net", "warning", what) in seen
    assert ("sys-usb", "ok", "qubes-usb-proxy 4.4.0 is installed") in seen


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"says": "", "code": 1}, "the qube cannot be asked: it gave no answer (exit code 1)"),
        (
            {"says": "", "code": 126},
            "the qube cannot be asked: dom0's policy refused the call of qubes.VMShell",
        ),
        ({"says": "4.4.0\n{}"}, "the qube cannot be asked: its answer makes no sense"),
        ({"says": "x" * 70000}, "the qube cannot be asked: its answer is too long"),
        ({"says": "4.3.6\n"}, "qubes-usb-proxy 4.3.6 is too old to check itself"),
    ],
)
def test_a_qube_that_tells_nothing(machine: Any, change: dict[str, Any], text: str) -> None:
    machine.domains["work"].__dict__.update(change)
    assert ("work", "warning", text) in found(machine)


def test_silence_has_an_end(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "SECONDS", 0.2)
    hanging = machine.domains["work"]
    hanging.run_service = lambda *_, **options: subprocess.Popen(
        ["sleep", "60"], **{name: options[name] for name in ("stdin", "stdout", "stderr")}
    )
    text = "the qube cannot be asked: it gave no answer for 0 seconds"
    assert ("work", "warning", text) in found(machine)


def test_a_call_that_says_all_and_does_not_end(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "SECONDS", 0.2)
    program = "exec >&-; exec sleep 60"
    machine.domains["work"].run_service = lambda *_, **options: subprocess.Popen(
        ["sh", "-c", program], **{name: options[name] for name in ("stdin", "stdout", "stderr")}
    )
    text = "the qube cannot be asked: its call did not end for 0 seconds"
    assert ("work", "warning", text) in found(machine)


def test_a_state_that_may_not_be_seen(machine: Any) -> None:
    """The client library calls it NA: the qube is asked, and is not said to be halted."""
    machine.domains["work"].__dict__.update(state="NA", is_running=lambda: False)
    seen = found(machine)
    assert ("work", "warning", "whether the qube runs cannot be seen from here") in seen
    assert ("work", "ok", "qrexec is there") in seen


def test_a_distribution_that_may_not_be_seen(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise sys.modules["qubesadmin.exc"].QubesException("no")

    monkeypatch.setattr(Qube, "features", SimpleNamespace(check_with_template=refuse))
    machine.domains["sys-usb"].says = "\n"
    machine.qubesd_connection_type = "qrexec"
    assert found(machine)["sys-usb", "error", "qubes-usb-proxy is not installed in sys-usb"] == ""


@pytest.mark.parametrize("option", ["--json", "--report"])
def test_qubesd_does_not_answer(capsys: pytest.CaptureFixture[str], option: str) -> None:
    class Silent:
        @property
        def domains(self) -> None:
            raise sys.modules["qubesadmin.exc"].QubesException("Failed to connect")

    sys.modules["qubesadmin"].Qubes = Silent  # type: ignore[attr-defined]
    assert doctor.main([option]) == 7
    assert "qubesd does not say what has to be known: Failed to connect" in capsys.readouterr().out


def test_a_list_that_makes_no_sense(
    machine: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_text: str) -> None:
        raise AssertionError("Invalid characters in interface encoding")

    monkeypatch.setattr(Interface, "from_str_bulk", refuse)
    sys.modules["qubesadmin"].Qubes = lambda: machine  # type: ignore[attr-defined]
    assert doctor.main(["work", "sys-usb:2-1"]) == 7
    said = capsys.readouterr().out
    assert "qubesd does not say what has to be known: Invalid characters in interface" in said


@pytest.mark.parametrize(
    ("mode", "stubdom", "source"),
    [("hvm", "1", "work-dm"), ("hvm", "", "work"), ("pvh", "1", "work")],
)
def test_who_calls(machine: Any, mode: str, stubdom: str, source: str) -> None:
    machine.domains["work"].__dict__.update(virt_mode=mode, stubdom=stubdom)
    assert ("dom0", "ok", f"policy: {(source, 'sys-usb', '2-1')}") in found(machine)


def test_names_that_are_none(machine: Any) -> None:
    assert wrong(machine, "wrok", "sys-usb:2-1") == [("dom0", "there is no qube wrok")]
    assert wrong(machine, "work", "sys-usb:9-9") == [
        ("sys-usb", "there is no device in 9-9; the qube has: 2-1")
    ]
    assert wrong(machine, "dom0", "sys-usb:2-1") == [
        ("dom0", "USB devices cannot be attached to or from dom0")
    ]
    assert wrong(machine, "sys-usb", "sys-usb:2-1") == [
        ("sys-usb", "the device is in this qube already")
    ]


def test_another_qube_has_it(machine: Any) -> None:
    other = Qube("vault")
    other.usb = {"attached": [stick(machine.domains["sys-usb"])]}
    machine.domains["vault"] = other
    repairs = found(machine)
    key = ("vault", "error", "the device is attached to this qube")
    assert repairs[key] == "qvm-usb detach vault sys-usb:2-1"


def test_what_a_qube_finds_is_told(machine: Any) -> None:
    repair = "chmod 0755 /usr/lib/qubes/usb-export"
    worse = {"level": "error", "text": "no\x1b[2J room", "repair": repair, "check": "x"}
    machine.domains["work"].says = "4.4.0\n" + json.dumps({"findings": [worse] * 100})
    told = list(doctor.examine(machine, "work", "sys-usb:2-1"))
    assert told.count(Finding("work", "error", "no [2J room", repair, "work")) == 64
    assert f"  run in work: {repair}" in showing.screen(told)


@pytest.mark.parametrize(
    "command",
    [
        "sudo rm -rf /",
        "qubes-usb-proxy repair; sudo rm -rf /",
        "qubes-usb-proxy detach $(reboot)",
        "depmod x && reboot",
    ],
)
def test_a_qube_names_no_command_that_is_not_known(machine: Any, command: str) -> None:
    told = {"level": "error", "text": "it broke", "repair": command, "check": "x"}
    machine.domains["work"].says = "4.4.0\n" + json.dumps({"findings": [told]})
    assert found(machine)["work", "error", "it broke"] == ""


def test_the_worst_comes_first_and_what_is_right_is_counted(
    machine: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sys.modules["qubesadmin"].Qubes = lambda: machine  # type: ignore[attr-defined]
    machine.domains["sys-usb"].memory = 200
    machine.domains["work"].state = "Halted"
    assert doctor.main(["work", "sys-usb:2-1"]) == 7
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "x work: the qube does not run (Halted)"
    assert lines[1] == "  run: qvm-start work"
    assert lines[2].startswith("! sys-usb: the qube has 200 MiB")
    assert lines[-1].endswith("checks found nothing wrong")
    assert doctor.main(["--json", "work", "sys-usb:2-1"]) == 7
    assert json.loads(capsys.readouterr().out)["findings"][0]["side"] == "work"


def test_a_report_names_nobody(
    machine: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sys.modules["qubesadmin"].Qubes = lambda: machine  # type: ignore[attr-defined]
    rule = 'usbguard blocks it: allow id 1:2 serial "1234567" name "Kingston" in work'
    told = {"level": "error", "text": rule, "repair": "run in work", "check": "x"}
    machine.domains["work"].says = "4.4.0\n" + json.dumps({"findings": [told]})
    doctor.main(["--report", "--json", "work", "sys-usb:2-1"])
    report = capsys.readouterr().out
    for secret in ("work", "sys-usb", "Kingston", "1234567", "fedora-43"):
        assert secret not in report


def test_a_report_names_nobody_that_is_not_there(
    machine: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    sys.modules["qubesadmin"].Qubes = lambda: machine  # type: ignore[attr-defined]
    assert doctor.main(["--report", "secret", "dom0:2-1"]) == 7
    assert "x dom0: there is no qube qube-1\n" in capsys.readouterr().out


def test_a_report_names_nobody_in_what_is_made_of_names() -> None:
    text = "work-dm, usb-import-sys-usb-2-1.state; work-shop; USB device serial ABC123 is there"
    (shown,) = showing.anonymous(["work", "sys-usb"], [Finding("work", "error", text, "x", "work")])
    masked = "qube-2-dm, usb-import-qube-1-2-1.state; work-shop; USB device serial ... is there"
    assert shown == Finding("qube-2", "error", masked, "x", "qube-2")


def test_it_needs_no_qubesd() -> None:
    """An admin qube has the client library alone."""
    program = "import sys; import usb_proxy.dom0.doctor; sys.exit('qubes' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=True)


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        doctor.main(["work", "2-1"])
    assert ended.value.code == 2
    assert "BACKEND:PORT" in capsys.readouterr().err


@settings(deadline=None)  # processors are shared
@given(st.binary(max_size=300))
def test_any_answer(untrusted: bytes) -> None:
    try:
        answer = asking.parse("work", b"4.4.0\n" + untrusted)
    except NoAnswerError:
        return
    assert answer.version == "4.4.0"


@settings(deadline=None)  # processors are shared
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=20),
        lambda deeper: (
            st.lists(deeper)
            | st.dictionaries(st.sampled_from(["findings", "level", "text", "repair"]), deeper)
        ),
    )
)
def test_any_json(untrusted: object) -> None:
    text = json.dumps({"findings": untrusted}).encode()
    try:
        answer = asking.parse("work", b"4.4.0\n" + text)
    except NoAnswerError:
        return
    assert answer.findings is not None
    for finding in answer.findings:
        assert finding.level in asking.LEVELS
        assert all(" " <= character <= "~" for character in finding.text + finding.repair)
