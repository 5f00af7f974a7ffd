# SPDX-License-Identifier: GPL-2.0-or-later
"""`qrexec-client-vm [options] TARGET SERVICE[+ARG] [PROGRAM ARGS…]`: call another guest."""

import _socket
import os
import sys

from . import wire
from .relay import Relay, Signals

AGENT = "/run/lab-agent.sock"
MAX_TARGET, MAX_SERVICE = 31, 63


class Failed(Exception):
    """The call did not come about: the exit code, and a message."""


def request(target: str, service: str) -> _socket.socket:
    """Ask the agent for a connection; returns the link once the policy has allowed it."""
    if len(target) > MAX_TARGET or len(service) > MAX_SERVICE:
        raise Failed(wire.EXIT_PROBLEM, "name of target or service too long")
    link = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    try:
        link.connect(AGENT)
        link.send(bytes((wire.CALL,)) + f"{target}\0{service}".encode())
        answer = link.recv(wire.CHUNK)
    except OSError as error:
        raise Failed(wire.EXIT_PROBLEM, f"cannot reach the agent: {error.strerror}") from error
    if not answer:
        raise Failed(wire.EXIT_PROBLEM, "the agent closed the connection")
    if answer[0] == wire.REFUSE:
        raise Failed(wire.value(answer[1:]), answer[5:].decode())
    return link


def _become(program: "list[str]", stdin: _socket.socket, stdout: _socket.socket) -> None:
    """In the child: run the program with the sockets as FD 0 and 1."""
    saved = {f"SAVED_FD_{fd}": os.dup(fd) for fd in (0, 1)}
    for name, fd in saved.items():
        os.set_inheritable(fd, True)
        os.environ[name] = str(fd)
    os.environ["QREXEC_AGENT_PID"] = str(os.getppid())
    os.dup2(stdin.fileno(), 0)
    os.dup2(stdout.fileno(), 1)
    Signals.reset()
    os.execv(program[0], [os.path.basename(program[0]), *program[1:]])


def start(program: "list[str]") -> "tuple[int, int, int]":
    """Start the local program; returns its pid and our ends of its stdin and stdout."""
    (stdin, its_stdin), (stdout, its_stdout) = (
        _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM) for _ in range(2)
    )
    pid = os.fork()
    if pid == 0:
        try:
            _become(program, its_stdin, its_stdout)
        except OSError as error:
            os.write(2, f"{program[0]}: {error.strerror}\n".encode())
        finally:
            os._exit(255)
    its_stdin.close()
    its_stdout.close()
    return pid, stdin.detach(), stdout.detach()


def main(argv: "list[str]") -> int:
    """Returns the program's exit code; without a program the service's."""
    arguments = argv[1:]
    while arguments and arguments[0].startswith("-"):
        arguments.pop(0)  # the real one's options are about filtering and buffers
    if len(arguments) < 2:
        os.write(2, b"usage: qrexec-client-vm TARGET SERVICE[+ARG] [PROGRAM ARGS...]\n")
        return 2
    try:
        link = request(arguments[0], arguments[1])
    except Failed as failed:
        os.write(2, f"{failed.args[1]}\n".encode())
        return int(failed.args[0])
    signals = Signals()
    pid, stdin, stdout = start(arguments[2:]) if arguments[2:] else (0, 1, 0)
    relay = Relay(link, signals, (stdin, stdout, -1), pid)
    relay.run()
    if pid:
        return relay.wait()
    return 255 if relay.remote is None else relay.remote


if __name__ == "__main__":
    sys.exit(main(sys.argv))
