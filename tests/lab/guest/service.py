# SPDX-License-Identifier: GPL-2.0-or-later
"""The process of one incoming connection: starts a service or a command, and relays its data."""

import _socket
import os
import pwd

from . import wire
from .relay import Relay, Signals

SERVICE_FOLDERS = ("/usr/local/etc/qubes-rpc", "/etc/qubes-rpc")
CONFIG_FOLDERS = ("/usr/local/etc/qubes/rpc-config", "/etc/qubes/rpc-config")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


USERS_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"
"""A service's is that of a login shell of its user (/etc/profile)."""

TOOLS = ". /usr/lib/lab/tools; "
"""What a shell reads before a test's command."""

ENOENT = 2  # <asm-generic/errno-base.h>


class Unusable(Exception):
    """There is no such service, or it cannot be started: the exit code. Nothing is said of it."""


def find(folders: "tuple[str, ...]", full_name: str) -> "str | None":
    """The first of NAME+ARG and NAME in each folder."""
    name, _, argument = full_name.partition("+")
    for folder in folders:
        for file in (f"{name}+{argument}", name):
            if os.path.exists(f"{folder}/{file}"):
                return f"{folder}/{file}"
    return None


def forced_user(full_name: str) -> "str | None":
    """`force-user` of the service's configuration."""
    path = find(CONFIG_FOLDERS, full_name)
    if path:
        with open(path, encoding="ascii") as file:
            for line in file:
                key, _, value = line.strip().partition("=")
                if len(value) < 2 or value[0] not in "'\"01tf":
                    raise Unusable(wire.EXIT_PROBLEM)
                if key == "force-user":
                    return value.strip("'\"")
    return None


def become(user: str) -> "dict[str, str]":
    """Change to a user, with its groups; returns the environment that it starts with."""
    entry = pwd.getpwnam(user)
    os.initgroups(user, entry.pw_gid)
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
    os.chdir(entry.pw_dir if os.path.isdir(entry.pw_dir) else "/")
    return {
        "PATH": PATH,
        "HOME": entry.pw_dir,
        "USER": user,
        "LOGNAME": user,
        "SHELL": entry.pw_shell,
    }


def service_environment(full_name: str, remote: str) -> "dict[str, str]":
    """What a service is told; the caller is still the connection's process or its child."""
    told = {
        "QREXEC_REMOTE_DOMAIN": remote,
        "QREXEC_REQUESTED_TARGET_TYPE": "",
        "QREXEC_SERVICE_FULL_NAME": full_name,
    }
    if "+" in full_name:
        told["QREXEC_SERVICE_ARGUMENT"] = full_name.partition("+")[2]
    return told


def _replace(user: str, argv: "list[str]", extra: "dict[str, str]", fds: "tuple[int, ...]") -> None:
    """In the child: become the program; returns only by an exception."""
    for target, fd in enumerate(fds):
        os.dup2(fd, target)
    Signals.reset()
    os.setsid()
    environment = become(user)
    if extra and os.getuid():
        environment["PATH"] = USERS_PATH
    os.execve(argv[0], argv, environment | extra)


def _spawn(user: str, argv: "list[str]", extra: "dict[str, str]", fds: "tuple[int, ...]") -> int:
    pid = os.fork()
    if pid == 0:
        code = wire.EXIT_PROBLEM
        try:
            _replace(user, argv, extra, fds)
        except (OSError, KeyError) as error:
            os.write(2, f"{argv[0]}: {error}\n".encode())
            if isinstance(error, OSError) and error.errno == ENOENT:
                code = wire.EXIT_NOT_FOUND  # a shell's word for an interpreter that is not there
        finally:
            os._exit(code)
    for fd in fds:
        os.close(fd)
    return pid


def _socket_pair() -> "tuple[int, int]":
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    return ours.detach(), theirs.detach()


def _pipe(writing: bool) -> "tuple[int, int]":
    reader, writer = os.pipe()
    return (writer, reader) if writing else (reader, writer)


def _start(link: _socket.socket, payload: bytes) -> "tuple[Relay, bool]":
    """Start what OPEN asks for, or raise `Unusable`."""
    kind, user, remote, command = payload.split(b"\0", 3)
    signals = Signals()
    if kind == wire.EXEC:
        argv, extra = ["/bin/sh", "-c", TOOLS + os.fsdecode(command)], {}
        pairs = _pipe(True), _pipe(False), _pipe(False)
        owner = user.decode()
    else:
        name = command.decode()
        if remote != b"dom0" and "+" not in name:
            name += "+"  # as the caller's daemon completes it
        path = find(SERVICE_FOLDERS, name)
        if path is None:
            raise Unusable(wire.EXIT_NOT_FOUND)
        if not os.access(path, os.X_OK):
            raise Unusable(wire.EXIT_PROBLEM)
        argument = name.partition("+")[2]
        argv = [path, argument] if argument else [path]
        extra = service_environment(name, remote.decode())
        extra["QREXEC_AGENT_PID"] = str(os.getpid())
        pairs = _socket_pair(), _socket_pair(), _pipe(False)
        owner = forced_user(name) or user.decode()
    pid = _spawn(owner, argv, extra, tuple(theirs for _, theirs in pairs))
    ours = (pairs[0][0], pairs[1][0], pairs[2][0])
    log = None if kind == wire.EXEC else 2
    return Relay(link, signals, ours, pid, log), kind == wire.EXEC


def _read(link: _socket.socket, folder: bytes) -> int:
    """Send all files of a folder, each as it was at one moment: name, size and contents."""
    for name in os.listdir(folder):
        try:
            with open(folder + b"/" + name, "rb") as file:
                value = file.read()
        except FileNotFoundError:
            continue
        link.send(bytes((wire.STDOUT,)) + b"%s\0%d\0%s" % (name, len(value), value))
    link.send(bytes((wire.EXIT,)) + wire.number(0))
    return 0


def serve(link: _socket.socket, payload: bytes) -> int:
    """Run one connection, to its end; returns the exit code of what it ran."""
    kind, _, _, path = payload.split(b"\0", 3)
    if kind == wire.READ:
        return _read(link, path)
    try:
        relay, is_command = _start(link, payload)
    except Unusable as unusable:
        code: int = unusable.args[0]
        for frame in (
            bytes((wire.STDOUT,)),
            bytes((wire.STDERR,)),
            bytes((wire.EXIT,)) + wire.number(code),
        ):
            link.send(frame)
        return code
    relay.run()
    if is_command and relay.local is None:
        # The caller gave up: a test's command has nobody left to end it.
        relay.kill_group()
    return relay.wait()
