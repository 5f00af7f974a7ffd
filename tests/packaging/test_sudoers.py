# SPDX-License-Identifier: GPL-2.0-or-later
"""What the sudoers file allows an unprivileged account, asked of the real sudo."""

import subprocess
from pathlib import Path

import pytest

from .machine import TOP, Root, copy_of, need, run

TOOL = "/usr/bin/qubes-usb-proxy"
EXPORTER = "/usr/lib/qubes/usb-export"
STUB = """#!/bin/sh
echo "ran as $(id -un): $*"
env | cut -d= -f1 | sort | tr '\\n' ' '
echo; readlink /proc/self/fd/0; echo "parent $PPID"
"""
# What sudo sets itself, and the shell of the stub.
OWN = {
    "HOME",
    "LOGNAME",
    "MAIL",
    "PATH",
    "PWD",
    "SHELL",
    "SUDO_COMMAND",
    "SUDO_GID",
    "SUDO_UID",
    "SUDO_USER",
    "TERM",
    "USER",
    "OLDPWD",
    "_",
    "SHLVL",
}
LOOKS = [f"{name}{option}" for name in ("status", "doctor") for option in ("", " --json")]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Root:
    made = copy_of("full", tmp_path_factory.mktemp("sudoers"))
    run("make", "install-vm", f"DESTDIR={made.folder}")
    for program in (TOOL, EXPORTER):
        (made.folder / program[1:]).write_text(STUB)
    return made


def sudo(
    root: Root, *arguments: str, user: str = "user", **environment: str
) -> subprocess.CompletedProcess[str]:
    return root.attempt("sudo", "-n", *arguments, user=user, **environment)


def test_syntax() -> None:
    need("visudo")
    (file,) = (TOP / "sudoers").iterdir()
    assert "." not in file.name, "sudo would skip it"
    run("visudo", "-c", "-s", "-f", file)


def test_installed_file(root: Root) -> None:
    run("visudo", "-c", "-O", "-P", "-f", root.folder / "etc/sudoers.d/qubes-usb-proxy")
    root.run("visudo", "-c")


@pytest.mark.parametrize("words", LOOKS)
def test_look_is_allowed(root: Root, words: str) -> None:
    done = sudo(root, TOOL, *words.split())
    assert done.stdout.startswith(f"ran as root: {words}\n"), done.stderr


@pytest.mark.parametrize(
    "command",
    [
        [TOOL],
        [TOOL, "repair"],
        [TOOL, "detach", "2-1"],
        [TOOL, "status", "--watch"],
        [TOOL, "status", "--json", "--watch"],
        [TOOL, "status", ""],
        [TOOL, "status", "repair"],
        [TOOL, "doctor", "--json", "x"],
        [TOOL, "--json", "doctor"],
        [EXPORTER, "2-1"],
        ["/bin/sh"],
        ["-s"],
        ["-i"],
        ["/usr/lib/qubes/usb-import", "2-1"],
        ["/usr/lib/qubes/usb-reset", "2-1"],
        ["/usr/lib/qubes/usb-detach-all"],
        ["/usr/lib/qubes/usb-proxy/launch", "usb-export", "2-1"],
        ["/bin/sh", EXPORTER, "2-1"],
        ["-e", TOOL],
        ["-u", "stranger", TOOL, "status"],
        ["-g", "root", TOOL, "status"],
        ["-D", "/tmp", TOOL, "status"],
        ["-R", "/tmp", TOOL, "status"],
        ["-C", "9", TOOL, "status"],
    ],
    ids=" ".join,
)
def test_other_command(root: Root, command: list[str]) -> None:
    done = sudo(root, *command)
    assert done.returncode == 1
    assert "ran as" not in done.stdout


@pytest.mark.parametrize("name", ["stranger", "nobody"])
def test_other_account(root: Root, name: str) -> None:
    root.attempt("groupadd", "nobody")
    done = sudo(root, TOOL, "status", user=name)
    assert (done.returncode, done.stdout) == (1, "")


def test_environment(root: Root) -> None:
    """Only what sudo always sets."""
    names = (
        "QREXEC_REMOTE_DOMAIN",
        "QREXEC_AGENT_PID",
        "PYTHONPATH",
        "LD_PRELOAD",
        "LC_ALL",
        "FOO",
        "LANG",
        "DISPLAY",
        "XAUTHORITY",
        "PS4",
        "QUBES_X",
        "XQREXEC_Y",
        "TZ",
    )
    done = sudo(root, TOOL, "status", **dict.fromkeys(names, "x"))
    given = set(done.stdout.splitlines()[1].split())
    assert given <= OWN


@pytest.mark.parametrize(
    "options",
    [["FOO=1"], ["LD_PRELOAD=/x"], ["PATH=/tmp"], ["-E"], ["--preserve-env=FOO"]],
    ids=" ".join,
)
def test_asking_for_another_variable(root: Root, options: list[str]) -> None:
    done = sudo(root, *options, TOOL, "status", FOO="1")
    assert (done.returncode, done.stdout) == (1, "")
    assert "not allowed to" in done.stderr


STRANGER = """
import os, subprocess, sys
sys.path.insert(0, "/usr/lib/qubes/usb-proxy")
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
    """QREXEC_AGENT_PID comes from whoever starts the exporter."""
    root.run("python3", "-c", STRANGER)


def test_folder_of_sudoers_keeps_its_mode(tmp_path: Path) -> None:
    folder = tmp_path / "etc/sudoers.d"
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    run("make", "install-vm", f"DESTDIR={tmp_path}")
    assert folder.stat().st_mode & 0o777 == 0o755
