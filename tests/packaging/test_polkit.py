# SPDX-License-Identifier: GPL-2.0-or-later
"""What the polkit action allows, asked of the real polkit."""

from xml.etree import ElementTree as ET

import pytest

from .machine import TOP, Root, copy_of, need, run

(FILE,) = (TOP / "polkit").iterdir()
DTD = "/usr/share/polkit-1/policyconfig-1.dtd"
PROGRAMS = {
    "org.qubes-os.usb-proxy.detach-all": "/usr/lib/qubes/usb-detach-all",
    "org.qubes-os.usb-proxy.reset": "/usr/lib/qubes/usb-reset",
    "org.qubes-os.usb-proxy.detach": "/usr/bin/qubes-usb-proxy detach",
    "org.qubes-os.usb-proxy.repair": "/usr/bin/qubes-usb-proxy repair",
}
"""Each with its first argument, where only that is meant."""
DAEMONS = """
mkdir -p /run/dbus; dbus-daemon --system --fork --nopidfile
/usr/lib/polkit-1/polkitd --no-debug >/dev/null 2>&1 &
for program; do
    setpriv --reuid=user --regid=user --init-groups pkexec $program </dev/null 2>&1 || echo code $?
done
pkaction --verbose | grep -A 9 '^org.qubes-os'
"""
RULE = """polkit.addRule(function(action, subject) {
    if ((action.id == "org.qubes-os.usb-proxy.reset"
         || action.id == "org.qubes-os.usb-proxy.repair") && subject.user == "user")
        return polkit.Result.YES;
});
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Root:
    made = copy_of("full", tmp_path_factory.mktemp("polkit"))
    run("make", "install-vm", f"DESTDIR={made.folder}")
    for program in PROGRAMS.values():
        path = made.folder / program.split()[0][1:]
        path.write_text('#!/bin/sh\necho "ran as $(id -un): $*"\n')
    return made


def test_against_its_definition() -> None:
    need("xmllint")
    run("xmllint", "--noout", "--nonet", "--dtdvalid", DTD, FILE)


def test_values() -> None:
    """The definition does not check values."""
    actions = ET.parse(FILE).getroot().findall("action")
    assert len(actions) == len(PROGRAMS)
    for action in actions:
        values = {each.tag: each.text for each in action.findall("defaults/*")}
        names = ("allow_any", "allow_inactive", "allow_active")
        assert values == dict.fromkeys(names, "auth_admin")
        program, *argument = PROGRAMS[action.attrib["id"]].split()
        keys = {each.get("key"): each.text for each in action.findall("annotate")}
        expected = {"path": program, **({"argv1": argument[0]} if argument else {})}
        assert keys == {f"org.freedesktop.policykit.exec.{n}": text for n, text in expected.items()}
        assert (TOP / "programs" / program.rpartition("/")[2]).exists()


def test_nobody_may_without_the_administrator(root: Root) -> None:
    commands = [f"{program} 2-1" for program in PROGRAMS.values()]
    said = root.run("sh", "-c", DAEMONS, "sh", *commands)
    assert "ran as" not in said
    assert said.count("code 127") == len(commands)
    for name in PROGRAMS:
        assert name in said
    assert said.count("auth_admin") == 3 * len(PROGRAMS)


def test_a_rule_for_one_action_allows_no_other(root: Root) -> None:
    rules = root.folder / "etc/polkit-1/rules.d/10-test.rules"
    rules.parent.mkdir(parents=True, exist_ok=True)
    rules.write_text(RULE)
    try:
        said = root.run(
            "sh",
            "-c",
            DAEMONS,
            "sh",
            "/usr/lib/qubes/usb-reset 2-1",
            "/usr/lib/qubes/usb-detach-all",
            "/usr/lib/qubes/usb-export 2-1",
            "/bin/sh",
            "/usr/bin/qubes-usb-proxy repair",
            "/usr/bin/qubes-usb-proxy detach 2-1",
            "/usr/bin/qubes-usb-proxy status",
        )
    finally:
        rules.unlink()
    assert said.count("ran as root: 2-1\n") == 1
    assert said.count("ran as root: repair\n") == 1
    assert said.count("ran as") == 2
    assert said.count("code 127") == 5
