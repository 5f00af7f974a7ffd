# SPDX-License-Identifier: GPL-2.0-or-later
"""`qrexec-client-vm [options] TARGET SERVICE[+ARG] [PROGRAM ARGS…]`: call another guest."""

import _signal  # type: ignore[import-not-found]  # typeshed knows `signal` alone
import _socket
import os
import sys
import time

from . import wire
from .relay import Relay, Signals

AGENT = "/run/lab-agent.sock"
MAX_TARGET = 63
"""Longer ones are cut off, and nobody is of that name; a service may have any length."""

LOST = 255
"""The exit code when the connection ended before the service."""


class Failed(Exception):
    """The call did not come about: the exit code, and a message."""


def request(target: str, service: str) -> _socket.socket:
    """Ask the agent for a connection; returns the link once the policy has allowed it."""
    link = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    try:
        link.connect(AGENT)
        link.send(bytes((wire.CALL,)) + f"{target[:MAX_TARGET]}\0{service}".encode())
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
    os.environ.pop("LC_CTYPE", None)  # Python's own doing
    os.dup2(stdin.fileno(), 0)
    os.dup2(stdout.fileno(), 1)
    Signals.reset()
    _signal.signal(_signal.SIGPIPE, _signal.SIG_IGN)  # as the real one leaves it to its program
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


def _log(text: str) -> None:
    """What the real one writes to its stderr, where the service's text comes out, too."""
    stamp = time.strftime("%Y-%m-%d %H:%M:%S")
    os.write(2, f"{stamp}.000 qrexec-client-vm[{os.getpid()}]: {text}\n".encode())


def main(argv: "list[str]") -> int:
    """Returns the service's exit code, or the program's if that of the service is 0."""
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
    code = relay.wait() if pid else 0
    if relay.remote is None:
        _log("process_io.c:249:qrexec_process_io: vchan connection closed early")
        return LOST
    return relay.remote or code


if __name__ == "__main__":
    sys.exit(main(sys.argv))
