#!/usr/bin/python3 -IS
# SPDX-License-Identifier: GPL-2.0-or-later
"""`caller.py DEVICE MODE`: an account that may run the exporter by sudo, and means harm by it.

It plays agent and frontend itself, and ends with the exporter's code. Its stderr is the exporter's.
"""

import fcntl
import os
import pty
import resource
import signal
import socket
import sys
import termios
import time

EXPORTER = "/usr/lib/qubes/usb-export"
PLANTED = "/tmp/planted"  # made by the test, with programs and modules that tell when they ran
PROGRAM = f"{PLANTED}/modprobe"
ALL_SIGNALS = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
LIMITS = {
    "no file may grow": (resource.RLIMIT_FSIZE, 0),
    "few file descriptors": (resource.RLIMIT_NOFILE, 6),
    "a second of processor time": (resource.RLIMIT_CPU, 1),
    "no processes": (resource.RLIMIT_NPROC, 1),
    "little memory": (resource.RLIMIT_AS, 14500 << 10),
    "no stack": (resource.RLIMIT_STACK, 64 << 10),
    "no core": (resource.RLIMIT_CORE, 0),
}
KEYS = {"^C": b"\x03", "^Z": b"\x1a", "^\\": b"\x1c"}
ENVIRONMENTS = {
    "PYTHONPATH": {"PYTHONPATH": PLANTED, "PYTHONSTARTUP": PROGRAM, "PYTHONHOME": PLANTED},
    "PATH": {"PATH": f"{PLANTED}:/usr/bin", "BASH_ENV": PROGRAM, "ENV": PROGRAM},
    "LD_PRELOAD": {"LD_PRELOAD": PROGRAM, "LD_LIBRARY_PATH": PLANTED},
    "QREXEC": {"QREXEC_SERVICE_FULL_NAME": "$(reboot)", "QREXEC_X": "x" * 100000},
    "a stranger's name": {"QREXEC_REMOTE_DOMAIN": "../../x"},
    "no name": {"QREXEC_REMOTE_DOMAIN": ""},
}


def spoil(mode: str, terminal: int) -> None:
    """In the child, before sudo."""
    if mode in LIMITS:
        what, limit = LIMITS[mode]
        resource.setrlimit(what, (limit, limit))
    elif mode.startswith("timer"):
        for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
            signal.setitimer(timer, float(mode.split()[1]))
    elif mode == "signals are ignored and blocked":
        for number in ALL_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, ALL_SIGNALS)
    elif mode in KEYS:
        os.setpgid(0, 0)
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        os.tcsetpgrp(terminal, os.getpid())
        signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    elif mode.startswith("closed"):
        for fd in mode.split()[1:]:
            os.close(int(fd))


def attack(mode: str, terminal: int) -> None:
    """When the device is handed over."""
    if mode in KEYS:
        os.write(terminal, KEYS[mode])
    elif mode == "signals":
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if b"usb-export" not in file.read() or int(pid) == os.getpid():
                    continue
            for number in ALL_SIGNALS | {signal.SIGKILL, signal.SIGSTOP}:
                try:
                    os.kill(int(pid), number)
                except PermissionError:
                    continue
                if number != signal.SIGCONT:  # which a session may send to its own (kill(2))
                    os.write(2, f"{number} was sent\n".encode())


def main(device: str, mode: str) -> int:
    """See the top."""
    signal.signal(signal.SIGUSR1, lambda *_: None)
    ours, theirs = socket.socketpair()
    master, terminal = pty.openpty()
    if mode in KEYS:
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    agent = mode.removeprefix("agent ") if mode.startswith("agent ") else str(os.getpid())
    environment = {"QREXEC_AGENT_PID": agent, "QREXEC_REMOTE_DOMAIN": "work"}
    environment |= ENVIRONMENTS.get(mode, {})
    if os.path.isdir(PLANTED):
        os.chdir(PLANTED)
    command = ["/usr/bin/sudo", "-n", EXPORTER, device]
    if mode == "many arguments":
        command += ["2-1"] * 20000
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(theirs.fileno(), 0)
            os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
            spoil(mode, terminal)
            os.execve(command[0], command, environment)
        except OSError as error:
            os.write(2, f"sudo: {error.strerror}\n".encode())
        finally:
            os._exit(1)
    theirs.close()
    if ours.recv(1):
        time.sleep(float(mode.split()[1]) + 1 if mode.startswith("timer") else 0)
        attack(mode, master)
        while (mode in KEYS or mode == "signals") and ours.recv(1000):
            pass  # until somebody takes the device back
    ours.close()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else 128 - code


sys.exit(main(*sys.argv[1:]))
