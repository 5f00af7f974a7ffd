# SPDX-License-Identifier: GPL-2.0-or-later
"""What the doctor finds on machines that lack something; its repairs are tried in the lab."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

try:
    from usb_proxy.dom0.repairs import is_known
except ImportError:  # The package of a qube has no part of dom0's.

    def is_known(untrusted_command: str) -> bool:
        return bool(untrusted_command)


from usb_proxy.errors import ExitCode
from usb_proxy.tool import files

from .processes import hold, leave, run

if TYPE_CHECKING:
    from collections.abc import Callable

    from .fake_kernel import FakeKernel

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the files have to be root's")

DEVID = 0x20005


@pytest.fixture
def machine(kernel: FakeKernel) -> FakeKernel:
    """A backend and frontend where all is well."""
    tree = kernel.tree
    others = (files.RPC_CONFIG, files.UDEV_RULES)
    for path in (*files.SERVICES, *files.PROGRAMS, *others):
        (tree / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        (tree / path[1:]).touch()
        (tree / path[1:]).chmod(0o755)
    (tree / files.RPC_CONFIG[1:]).write_text("# comment\nforce-user='root' # as it is\n")
    (tree / files.SUSPEND_HOOK[1:]).parent.mkdir()
    (tree / files.SUSPEND_HOOK[1:]).symlink_to("/usr/lib/qubes/usb-detach-all")
    (tree / "etc/group").write_text("root:x:0:\nqubes:x:98:user\n")
    os.chown(tree / "run/qubes", 0, 98)
    (tree / "run/qubes").chmod(0o2770)
    (tree / "proc").mkdir()
    (tree / "proc/locks").symlink_to("/proc/locks")
    for name in ("qrexec-client-vm", "qubesdb-list"):
        kernel.command(name)
    bus = tree / "sys/devices/pci0000:00/usb2"
    bus.mkdir(parents=True)
    (kernel.usb / "devices/usb2").symlink_to(bus)
    kernel.match_busid.write_text("")
    kernel.add_vhci()
    return kernel


def look(kernel: FakeKernel) -> tuple[int, list[tuple[str, str, str | None]]]:
    """The doctor's exit code, and the check, sentence and command of what is not well."""
    code = run(kernel, "qubes-usb-proxy", "doctor", "--json")
    found = json.loads(kernel.shown())
    assert found["version"] == 1
    for finding in found["findings"]:
        assert list(finding) == ["check", "level", "text", "repair"]
        assert is_known(finding["repair"] or "qubes-usb-proxy repair"), finding["repair"]
    wrong = [each for each in found["findings"] if each["level"] != "ok"]
    worst = "error" if any(each["level"] == "error" for each in wrong) else "warning"
    assert code == ({"error": ExitCode.SYSTEM, "warning": ExitCode.WARNING}[worst] if wrong else 0)
    assert kernel.said() == "" and kernel.written == []
    return code, [(each["check"], each["text"], each["repair"]) for each in wrong]


def test_all_is_well(machine: FakeKernel) -> None:
    assert look(machine) == (0, [])
    assert run(machine, "qubes-usb-proxy", "doctor") == ExitCode.OK
    lines = machine.shown().splitlines()
    assert {line[:2] for line in lines} == {"+ "}
    assert len(lines) == 15


def test_a_machine_with_nothing(kernel: FakeKernel) -> None:
    shutil.rmtree(kernel.tree / "usr")
    shutil.rmtree(kernel.tree / "sys")
    code, found = look(kernel)
    assert code == ExitCode.SYSTEM
    assert {check for check, _, _ in found} >= {"qrexec", "run qubes", "services", "module"}


REINSTALL = "dnf reinstall -y qubes-usb-proxy"


def remove(path: str) -> Callable[[FakeKernel], object]:
    return lambda kernel: (kernel.tree / path[1:]).unlink()


def write(path: str, text: str) -> Callable[[FakeKernel], object]:
    def change(kernel: FakeKernel) -> None:
        (kernel.tree / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        (kernel.tree / path[1:]).write_text(text)

    return change


@pytest.mark.parametrize(
    ("breaks", "check", "text", "repair"),
    [
        (remove("/usr/bin/qrexec-client-vm"), "qrexec", "cannot call another",
         "dnf reinstall -y qubes-core-qrexec"),
        (write("/etc/group", "root:x:0:\n"), "/run/qubes", "there is no group qubes",
         "groupadd -r qubes && install -d -o root -g qubes -m 2770 /run/qubes"),
        (lambda k: (k.tree / "run/qubes").chmod(0o777), "/run/qubes", "users outside the group",
         "install -d -o root -g qubes -m 2770 /run/qubes"),
        (lambda k: os.chown(k.tree / "run/qubes", 0, 5), "/run/qubes", "users outside the group",
         "install -d -o root -g qubes -m 2770 /run/qubes"),
        (lambda k: (k.tree / "usr/lib/qubes/usb-export").chmod(0o644), "services",
         "/usr/lib/qubes/usb-export is not executable", "chmod 0755 /usr/lib/qubes/usb-export"),
        (remove("/etc/qubes-rpc/qubes.USB"), "services", "is not installed", REINSTALL),
        (remove(files.RPC_CONFIG), "rpc-config", "is missing or names no user",
         f"printf \"force-user='root'\\n\" > {files.RPC_CONFIG}"),
        (write(files.RPC_CONFIG, "force-user=\x1bev\"il\n"), "rpc-config", 'as ev"il instead',
         None),
        (remove(files.UDEV_RULES), "udev rules", "is missing", REINSTALL),
        (write("/etc/udev/rules.d/80-qubes-usb-reset.rules", ""), "udev rules", "replaces", None),
        (remove(files.SUSPEND_HOOK), "suspend", "not detached before suspend", None),
        (lambda k: k.command("qubesdb-list", "exit 1"), "QubesDB", "does not answer",
         "systemctl restart qubes-db"),
        (remove("/usr/bin/qubesdb-list"), "QubesDB", "qubesdb-list is not installed",
         "dnf reinstall -y qubesdb-vm"),
        (lambda k: k.match_busid.write_text("1-1 " * 16), "slots", "are not attached",
         "modprobe -r usbip-host"),
        (lambda k: k.command("usbguard", "exit 1"), "usbguard", "usbguard does not answer",
         "systemctl restart usbguard"),
        (lambda k: leave(k, "import-a-2-1", f"2 {DEVID}"), "leftovers", "of a:2-1 has died",
         "qubes-usb-proxy repair"),
        (lambda k: k.plug("2-1", "usbip-host"), "leftovers", "exported USB device 2-1",
         "qubes-usb-proxy detach 2-1"),
        (lambda k: k.occupy(3), "leftovers", "attached a device to port 3",
         "echo 3 > /sys/devices/platform/vhci_hcd.0/detach"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_found_alone(
    machine: FakeKernel,
    breaks: Callable[[FakeKernel], object],
    check: str,
    text: str,
    repair: str | None,
) -> None:
    breaks(machine)
    _, ((found, said, command),) = look(machine)
    assert found == check and text in said
    assert command == repair if repair else command


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("/etc/debian_version", "apt-get install -y --reinstall "
         "-o Dpkg::Options::=--force-confmiss qubes-usb-proxy"),
        ("/etc/arch-release", "pacman -S --noconfirm qubes-usb-proxy"),
    ],
)  # fmt: skip
def test_each_distribution_has_its_command(machine: FakeKernel, file: str, command: str) -> None:
    (machine.tree / file[1:]).touch()
    (machine.tree / "usr/lib/qubes/usb-export").unlink()
    assert look(machine)[1][0][2] == command


def test_modules(machine: FakeKernel) -> None:
    shutil.rmtree(machine.usb / "drivers/usbip-host")
    release = os.uname().release
    modules = machine.tree / "lib/modules" / release
    (modules / "kernel/drivers/usb/usbip").mkdir(parents=True)
    _, ((_, said, command),) = look(machine)
    assert (f"the kernel {release} has no module usbip-host" in said, command) == (True, None)
    for path in ("etc/debian_version", f"boot/vmlinuz-{release}"):
        (machine.tree / path).parent.mkdir(exist_ok=True)
        (machine.tree / path).touch()
    assert look(machine)[1][0][2] == f"apt-get install -y --reinstall linux-image-{release}"
    (modules / "kernel/drivers/usb/usbip/usbip-host.ko.xz").touch()
    assert look(machine)[1][0][2] == f"depmod {release}"
    (modules / "modules.dep").write_text("kernel/drivers/usb/usbip/usbip-host.ko.xz: x.ko\n")
    assert look(machine) == (0, [])
    write("/etc/modprobe.d/x.conf", "# no\ninstall usbip_host /bin/false\n")(machine)
    write("/etc/modprobe.d/README", "install usbip-host /bin/true\n")(machine)
    assert look(machine)[1][0][2] == "sed -i '/^ *install *usbip_host /d' /etc/modprobe.d/x.conf"
    write("/etc/modprobe.d/x.conf", "install usbip-core /bin/false\n")(machine)
    assert look(machine)[1][0][2] == "sed -i '/^ *install *usbip-core /d' /etc/modprobe.d/x.conf"


def test_what_is_full(machine: FakeKernel) -> None:
    machine.match_busid.write_text("1-1 " * 16)
    for number in (0, 1, 2, 6, 7, 8):
        machine.occupy(number)
    (machine.tree / "run/qubes/usb-import-sys-usb-2-1.state").write_text("7\n")
    with hold(machine, "export-1-1.4"):
        found = [each for each in look(machine)[1] if each[0] != "leftovers"]
    assert found == [
        ("slots", "usbip-host has 16 devices and cannot take another",
         "qubes-usb-proxy detach 1-1.4"),
        ("ports", "all 6 virtual high-speed ports are taken",
         "qubes-usb-proxy detach sys-usb:2-1"),
    ]  # fmt: skip


def test_what_dom0_was_told_of_the_dead(machine: FakeKernel) -> None:
    machine.plug("1-1.4")
    key = "/qubes-usb-devices/1-1_4"
    machine.run(["qubesdb-write", f"{key}/connected-to", "work"])
    ((_, said, command),) = look(machine)[1]
    assert "dom0 was told that 1-1.4 is attached, but it is not" in said
    assert command == f"qubesdb-rm {key}/connected-to {key}/x-pid; " \
        "qubesdb-write /qubes-usb-devices ''"  # fmt: skip


@pytest.mark.parametrize("answers", [True, False])
def test_usbguards_opinion(machine: FakeKernel, answers: bool) -> None:
    machine.command("usbguard", f"exit {1 - answers}")
    machine.plug("2-1")
    machine.plug("2-2", authorized="0")
    code, ((_, said, command),) = look(machine)
    assert code == ExitCode.WARNING, "usb-export authorizes what it lends"
    assert "2-2" in said and "2-1" not in said and "attach" in said
    expected = "usbguard allow-device 'via-port \"2-2\"'"
    assert command == (expected if answers else "systemctl restart usbguard")


def test_locks(machine: FakeKernel) -> None:
    leave(machine, "export-9-9", "")
    assert look(machine) == (0, [])
    folder = machine.tree / "run/qubes-usb-proxy"
    (folder / "export-9-9.lock").chmod(0o644)
    ((_, said, command),) = look(machine)[1]
    assert command == "chmod 0600 /run/qubes-usb-proxy/*.lock" and "and so block attaches" in said
    (folder / "export-9-9.lock").chmod(0o600)
    folder.chmod(0o700)
    repair = "chown root:root /run/qubes-usb-proxy && chmod 0755 /run/qubes-usb-proxy"
    assert [each[2] for each in look(machine)[1]] == [repair]


def test_a_backend_needs_no_ports_and_a_frontend_no_slots(machine: FakeKernel) -> None:
    def checks() -> set[str]:
        run(machine, "qubes-usb-proxy", "doctor", "--json")
        return {each["check"] for each in json.loads(machine.shown())["findings"]}

    assert {"slots", "ports"} <= checks()
    shutil.rmtree(machine.tree / "sys/devices/platform")
    assert "ports" not in checks() and "slots" in checks()
    (machine.usb / "devices/usb2").unlink()
    assert not {"slots", "QubesDB", "rpc-config"} & checks()


def test_who_is_not_root(machine: FakeKernel) -> None:
    machine.privileged = False
    assert look(machine) == (0, [])
    machine.command("qubesdb-list", "exit 1")
    machine.command("usbguard", "exit 1")
    assert look(machine) == (
        ExitCode.WARNING,
        [("QubesDB", "QubesDB does not answer this user", "sudo qubes-usb-proxy doctor")],
    )


def test_what_cannot_be_looked_at(machine: FakeKernel) -> None:
    """Anything may be in a file's place."""
    for path in (files.RPC_CONFIG, "/sys/bus/usb/drivers/usbip-host/match_busid"):
        (machine.tree / path[1:]).unlink()
        (machine.tree / path[1:]).mkdir()
    Path(machine.tree / "proc/locks").unlink()
    code, found = look(machine)
    assert code == ExitCode.SYSTEM
    assert {check for check, _, _ in found} >= {"rpc config", "slots"}
    assert all("cannot look" in said for _, said, _ in found)


@pytest.mark.parametrize("odd", ["/dev/null", "/nowhere", "fifo", "folder"])
def test_odd_files_of_modprobe_hold_nothing_up(machine: FakeKernel, odd: str) -> None:
    shutil.rmtree(machine.usb / "drivers/usbip-host")
    modules = machine.tree / "lib/modules" / os.uname().release
    modules.mkdir(parents=True)
    (modules / "modules.dep").write_text("x/usbip-host.ko: y.ko\n")
    file = machine.tree / "etc/modprobe.d/x.conf"
    file.parent.mkdir(parents=True)
    if odd == "fifo":
        os.mkfifo(file)
    elif odd == "folder":
        file.mkdir()
    else:
        file.symlink_to(odd)
    assert look(machine) == (0, [])


@pytest.mark.parametrize("has_usbguard", [True, False])
def test_buses_that_authorize_nothing(machine: FakeKernel, has_usbguard: bool) -> None:
    if has_usbguard:
        machine.command("usbguard")
    (machine.tree / "sys/devices/pci0000:00/usb2/authorized_default").write_text("0\n")
    code, ((check, said, command),) = look(machine)
    assert (code, check) == (ExitCode.WARNING, "authorization")
    assert ("usbguard decides" in said) is has_usbguard
    assert said.endswith("; you can still attach them")
    assert command == "echo 1 | tee /sys/bus/usb/devices/usb2/authorized_default"


def test_a_virtual_bus_that_authorizes_nothing(machine: FakeKernel) -> None:
    """What arrives there is not used, so it cannot be attached."""
    bus = machine.tree / "sys/devices/platform/vhci_hcd.0/usb10"
    (bus / "authorized_default").write_text("0\n")
    (machine.usb / "devices/usb10").symlink_to(bus)
    ((check, said, _),) = look(machine)[1]
    assert check == "authorization" and "attach" not in said


def test_a_virtual_bus_that_keeps_drivers_from_interfaces(machine: FakeKernel) -> None:
    """But for the time in which the importer keeps them away, to judge what arrives."""
    bus = machine.tree / "sys/devices/platform/vhci_hcd.0/usb10"
    (bus / "interface_authorized_default").write_text("0\n")
    (machine.usb / "devices/usb10").symlink_to(bus)
    ((check, _, command),) = look(machine)[1]
    path = "/sys/bus/usb/devices/usb10/interface_authorized_default"
    assert (check, command) == ("authorization", f"echo 1 | tee {path}")
    write("/run/qubes-usb-proxy/gate-usb10", "")(machine)
    assert look(machine) == (0, [])


def test_a_kernel_that_gives_no_device_a_driver(machine: FakeKernel) -> None:
    (machine.usb / "drivers_autoprobe").write_text("0\n")
    code, ((_, said, command),) = look(machine)
    assert (code, command) == (ExitCode.WARNING, "echo 1 | tee /sys/bus/usb/drivers_autoprobe")
    assert "no USB device a driver by itself" in said


def test_a_kernel_that_takes_no_new_devices(machine: FakeKernel) -> None:
    write("/proc/sys/kernel/deny_new_usb", "1\n")(machine)
    code, ((_, said, command),) = look(machine)
    assert (code, command) == (ExitCode.SYSTEM, "echo 0 | tee /proc/sys/kernel/deny_new_usb")
    assert "takes no new USB devices" in said


def test_virtual_hubs_that_are_not_authorized(machine: FakeKernel) -> None:
    bus = machine.tree / "sys/devices/platform/vhci_hcd.0/usb10"
    (bus / "authorized").write_text("0\n")
    (machine.usb / "devices/usb10").symlink_to(bus)
    assert look(machine) == (
        ExitCode.SYSTEM,
        [
            (
                "authorization",
                "this qube blocks its own virtual hubs, so no device arrives",
                "echo 1 | tee /sys/bus/usb/devices/usb10/authorized",
            )
        ],
    )


@pytest.mark.parametrize("default", ["0", "1", "-1", "2"])
def test_virtual_buses_that_will_authorize_nothing(machine: FakeKernel, default: str) -> None:
    """Before the first attach, when there are none."""
    write("/sys/module/usbcore/parameters/authorized_default", f"{default}\n")(machine)
    code, found = look(machine)
    command = "echo 1 | tee /sys/devices/platform/vhci_hcd.*/usb*/authorized_default"
    assert (code == ExitCode.OK) is (default in ("1", "-1"))
    assert [each[2] for each in found] == [f"modprobe vhci-hcd && {command}"] * bool(code)


def test_a_read_only_sys(machine: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "is_read_only", lambda folder: folder == "/sys")
    said = "this qube's /sys is read-only"
    assert look(machine) == (ExitCode.SYSTEM, [("/sys", said, "mount -o remount,rw /sys")])


def test_a_kernel_that_loads_no_more_modules(machine: FakeKernel) -> None:
    write("/proc/sys/kernel/modules_disabled", "1\n")(machine)
    assert look(machine) == (0, [])
    shutil.rmtree(machine.usb / "drivers/usbip-host")
    ((_, said, command),) = look(machine)[1]
    assert "loads no more modules, and usbip-host is not loaded" in said
    assert command == "echo usbip-host > /etc/modules-load.d/qubes-usb-proxy.conf"


@pytest.mark.parametrize(
    ("path", "text", "word"),
    [
        ("/proc/cmdline", "ro nousb\n", "nousb"),
        ("/proc/cmdline", "usbcore.nousb=1 ro\n", "usbcore.nousb=1"),
        ("/proc/cmdline", "usbcore.nousb=0 module_blacklist=nouveau,usbip\n", None),
        ("/proc/cmdline", "module_blacklist=a,usbip_core\n", "module_blacklist=a,usbip_core"),
        ("/sys/module/usbcore/parameters/nousb", "Y\n", "usbcore.nousb"),
        ("/sys/module/usbcore/parameters/nousb", "N\n", None),
    ],
)
def test_a_command_line_of_the_kernel_that_turns_usb_off(
    machine: FakeKernel, path: str, text: str, word: str | None
) -> None:
    shutil.rmtree(machine.usb / "drivers/usbip-host")
    write(f"/lib/modules/{os.uname().release}/modules.dep", "x/usbip-host.ko: y.ko\n")(machine)
    write(path, text)(machine)
    said = [said for _, said, _ in look(machine)[1]]
    assert [each.partition(" ")[0] for each in said] == ([word] if word else [])


@pytest.mark.parametrize("target", ["/dev/null", "x.conf"])
def test_a_file_of_modprobe_that_is_masked_or_a_loop(machine: FakeKernel, target: str) -> None:
    shutil.rmtree(machine.usb / "drivers/usbip-host")
    write(f"/lib/modules/{os.uname().release}/modules.dep", "x/usbip-host.ko: y.ko\n")(machine)
    if target == "/dev/null":
        write("/usr/lib/modprobe.d/x.conf", "install usbip-host /bin/false\n")(machine)
    file = machine.tree / "etc/modprobe.d/x.conf"
    file.parent.mkdir(parents=True)
    file.symlink_to(target)
    assert look(machine) == (0, [])


def test_a_bus_for_what_is_built_in_alone(machine: FakeKernel) -> None:
    (machine.tree / "sys/devices/pci0000:00/usb2/authorized_default").write_text("2\n")
    code, found = look(machine)
    assert (code, [check for check, _, _ in found]) == (ExitCode.WARNING, ["authorization"])
