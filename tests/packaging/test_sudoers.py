# SPDX-License-Identifier: GPL-2.0-or-later
"""What the sudoers file allows an unprivileged account, asked of the real sudo."""

import subprocess
from pathlib import Path

import pytest

from .machine import TOP, Root, copy_of, need, run

EXPORTER = "/usr/lib/qubes/usb-export"
STUB = """#!/bin/sh
echo "ran as $(id -un): $*"
env | cut -d= -f1 | sort | tr '\\n' ' '
echo; readlink /proc/self/fd/0; echo "parent $PPID"
"""
# What sudo sets itself, and the shell of the stub.
OWN = {"HOME", "LOGNAME", "MAIL", "PATH", "PWD", "SHELL", "SUDO_COMMAND", "SUDO_GID", "SUDO_UID",
       "SUDO_USER", "TERM", "USER", "OLDPWD", "_", "SHLVL"}
GOOD = ["2-1", "1-1.4.2", "12-345.6", "0x1234.0xabCD"]
BAD = ["", "usb1", "2-1:1.0", "--help", "-h", "2-1 3-1", "2-1\n", "2-1\n3-1", "0-1", "2-0", "2-1.",
       "2-1000", "02-1", "2-1/../x", "../2-1", "0x123.0x5678", "0x1234.0x56789", "0x1234:0x5678",
       "0X1234.0x5678", "0x1234.0x567g", "2-1;id", "$(id)", "*", "2-*", "?-1", "2-1 "]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Root:
    made = copy_of("full", tmp_path_factory.mktemp("sudoers"))
    run("make", "install-vm", f"DESTDIR={made.folder}")
    (made.folder / EXPORTER[1:]).write_text(STUB)
    return made


def sudo(root: Root, *arguments: str, user: str = "user",
         **environment: str) -> subprocess.CompletedProcess[str]:
    return root.attempt("sudo", "-n", *arguments, user=user, **environment)


def test_syntax() -> None:
    need("visudo")
    (file,) = (TOP / "sudoers").iterdir()
    assert "." not in file.name, "sudo would skip it"
    run("visudo", "-c", "-s", "-f", file)


def test_installed_file(root: Root) -> None:
    run("visudo", "-c", "-O", "-P", "-f", root.folder / "etc/sudoers.d/qubes-usb-proxy")
    root.run("visudo", "-c")


@pytest.mark.parametrize("argument", GOOD)
def test_exporter_is_allowed(root: Root, argument: str) -> None:
    done = sudo(root, EXPORTER, argument)
    assert done.stdout.startswith(f"ran as root: {argument}\n"), done.stderr


@pytest.mark.parametrize("argument", BAD)
def test_other_argument(root: Root, argument: str) -> None:
    done = sudo(root, EXPORTER, argument)
    assert (done.returncode, done.stdout) == (1, ""), done


@pytest.mark.parametrize("command", [
    [EXPORTER], [EXPORTER, "2-1", "3-1"], [EXPORTER, "2-1", ""], ["/bin/sh"], ["-s"], ["-i"],
    ["/usr/lib/qubes/usb-import", "2-1"], ["/usr/lib/qubes/usb-reset", "2-1"],
    ["/usr/lib/qubes/usb-detach-all"], ["/usr/lib/qubes-usb-proxy/launch", "usb-export", "2-1"],
    ["/bin/sh", EXPORTER, "2-1"], ["-e", EXPORTER], ["-u", "stranger", EXPORTER, "2-1"],
    ["-g", "root", EXPORTER, "2-1"], ["-D", "/tmp", EXPORTER, "2-1"],
    ["-R", "/tmp", EXPORTER, "2-1"], ["-C", "9", EXPORTER, "2-1"],
], ids=" ".join)
def test_other_command(root: Root, command: list[str]) -> None:
    done = sudo(root, *command)
    assert done.returncode == 1
    assert "ran as" not in done.stdout


@pytest.mark.parametrize("name", ["stranger", "nobody"])
def test_other_account(root: Root, name: str) -> None:
    root.attempt("groupadd", "nobody")
    done = sudo(root, EXPORTER, "2-1", user=name)
    assert (done.returncode, done.stdout) == (1, "")


def test_environment(root: Root) -> None:
    """Only what qrexec says, and what sudo always sets."""
    names = ("QREXEC_REMOTE_DOMAIN", "QREXEC_AGENT_PID", "PYTHONPATH", "LD_PRELOAD", "LC_ALL",
             "FOO", "LANG", "DISPLAY", "XAUTHORITY", "PS4", "QUBES_X", "XQREXEC_Y", "TZ")
    done = sudo(root, EXPORTER, "2-1", **dict.fromkeys(names, "x"))
    given = set(done.stdout.splitlines()[1].split())
    assert given - OWN == {"QREXEC_REMOTE_DOMAIN", "QREXEC_AGENT_PID"}


@pytest.mark.parametrize("options", [["FOO=1"], ["LD_PRELOAD=/x"], ["PATH=/tmp"], ["-E"],
                                     ["--preserve-env=FOO"]], ids=" ".join)
def test_asking_for_another_variable(root: Root, options: list[str]) -> None:
    done = sudo(root, *options, EXPORTER, "2-1", FOO="1")
    assert (done.returncode, done.stdout) == (1, "")
    assert "not allowed to" in done.stderr


SERVICE = """
import os, socket, subprocess
ours, theirs = socket.socketpair()
ours.settimeout(9)
inode = os.fstat(theirs.fileno()).st_ino
done = subprocess.run(["/etc/qubes-rpc/qubes.USB", "2-1"], stdin=theirs,
                      capture_output=True, text=True)
assert done.returncode == 0, done
assert done.stdout.startswith("ran as root: 2-1"), done
assert f"socket:[{inode}]" in done.stdout, done
assert f"parent {os.getpid()}" in done.stdout, "something stays between the agent and the exporter"
"""


@pytest.mark.parametrize("user", ["user", "root"])
@pytest.mark.parametrize("pty", ["", "Defaults use_pty\n"])
def test_the_service_keeps_its_socket(root: Root, user: str, pty: str) -> None:
    """As root and not; also where sudo gives everybody a terminal, as newer ones do."""
    extra = root.folder / "etc/sudoers.d/aa-test"
    extra.write_text(pty)
    extra.chmod(0o440)
    root.run("python3", "-c", SERVICE, user=user, QREXEC_REMOTE_DOMAIN="work")


def test_the_service_without_sudo(root: Root) -> None:
    """The exporter itself says what is missing."""
    sudo_program = root.folder / "usr/bin/sudo"
    sudo_program.rename(root.folder / "usr/bin/sudo.away")
    try:
        done = root.attempt("/etc/qubes-rpc/qubes.USB", "2-1", user="user")
        assert done.stdout.startswith("ran as user: 2-1\n")
    finally:
        (root.folder / "usr/bin/sudo.away").rename(sudo_program)


STRANGER = """
import os, subprocess, sys
sys.path.insert(0, "/usr/lib/qubes-usb-proxy")
from usb_proxy.errors import RequestError
from usb_proxy.host import Host
from usb_proxy.qrexec import Link
import socket
stranger = subprocess.Popen(["sleep", "60"])
link, _ = socket.socketpair()
try:
    host = Host(environment={"QREXEC_AGENT_PID": str(stranger.pid)}, link=link.fileno())
    Link(host).use_both_ways()
except RequestError as error:
    assert "not the agent that started this" in str(error)
else:
    raise AssertionError("root signalled a stranger")
assert stranger.poll() is None
stranger.kill()
"""


def test_root_signals_no_stranger(root: Root) -> None:
    """QREXEC_AGENT_PID comes from the unprivileged account."""
    root.run("python3", "-c", STRANGER)


def test_folder_of_sudoers_keeps_its_mode(tmp_path: Path) -> None:
    folder = tmp_path / "etc/sudoers.d"
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    run("make", "install-vm", f"DESTDIR={tmp_path}")
    assert folder.stat().st_mode & 0o777 == 0o755
