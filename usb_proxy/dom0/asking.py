# SPDX-License-Identifier: GPL-2.0-or-later
"""What a running qube says of its own side of an attach: untrusted, bounded, allow-listed."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import time
from typing import IO, Any, NamedTuple, cast

from usb_proxy.dom0 import repairs
from usb_proxy.errors import printable

SECONDS = 30.0
"""How long one qube may take to answer; its own doctor needs about two."""

ANSWER_LIMIT = 65536
FINDINGS_LIMIT = 64
TEXT_LIMIT = 300

LEVELS = ("ok", "warning", "error")
"""From good to bad, as in `usb_proxy.tool.findings`."""

QUESTION = b"""\
v=$(dpkg-query -W -f '${Version}' qubes-usb-proxy 2>/dev/null ||
    rpm -q --qf '%{VERSION}-%{RELEASE}' qubes-usb-proxy 2>/dev/null ||
    pacman -Q qubes-usb-proxy 2>/dev/null) || v=
echo "$v"
command -v qubes-usb-proxy >/dev/null || exit 0
qubes-usb-proxy doctor --json
exit 0
"""
"""A program for the shell of qubes.VMShell: the package's version, then its findings."""


class Finding(NamedTuple):
    """`side` is the qube it is about, or dom0; `repair` a command, or '' where none is known.

    The command is for the qube `run_in`; for whoever reads this, where that is ''.
    """

    side: str
    level: str
    text: str
    repair: str = ""
    run_in: str = ""


class Answer(NamedTuple):
    """`version` is '' without a package; `findings` is None where it has no doctor."""

    version: str
    findings: list[Finding] | None


class NoAnswerError(Exception):
    """The qube could not be asked, or said too much, or nothing in time; its text says which."""


def ask(vm: Any, *, as_root: bool) -> Answer:
    """Ask a running qube, given as the client library has it. Raises NoAnswerError."""
    options = {"user": "root"} if as_root else {}  # A qube that is no dom0 cannot choose the user.
    process = vm.run_service(
        "qubes.VMShell",
        autostart=False,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        **options,
    )
    with process:
        try:
            untrusted_answer = _converse(process)
        finally:
            process.kill()
    code = process.returncode
    if code == 126:  # qrexec's, for a call that was refused
        raise NoAnswerError("dom0's policy refused the call of qubes.VMShell")
    if not untrusted_answer:
        raise NoAnswerError(f"it gave no answer (exit code {code})")
    return parse(vm.name, untrusted_answer)


def _converse(process: subprocess.Popen[bytes]) -> bytes:
    """Write the question, and read what comes until the end, a limit or a deadline."""
    question, answer = cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout)
    try:
        question.write(QUESTION)
        question.close()
    except BrokenPipeError:
        pass
    untrusted_answer = b""
    deadline = time.monotonic() + SECONDS
    with selectors.DefaultSelector() as selector:
        selector.register(answer, selectors.EVENT_READ)
        while selector.select(max(0.0, deadline - time.monotonic())):
            untrusted_part = os.read(answer.fileno(), ANSWER_LIMIT)
            if not untrusted_part:
                _end(process, deadline)
                return untrusted_answer
            untrusted_answer += untrusted_part
            if len(untrusted_answer) > ANSWER_LIMIT:
                raise NoAnswerError("its answer is too long")
    raise NoAnswerError(f"it gave no answer for {SECONDS:.0f} seconds")


def _end(process: subprocess.Popen[bytes], deadline: float) -> None:
    """Wait for the exit code of a call that has said all it will."""
    try:
        process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired as error:
        raise NoAnswerError(f"its call did not end for {SECONDS:.0f} seconds") from error


def parse(side: str, untrusted_answer: bytes) -> Answer:
    """What a qube said; NoAnswerError for what is no such answer."""
    untrusted_version, _, untrusted_json = untrusted_answer.partition(b"\n")
    words = printable(untrusted_version, 60).split()
    version = words[-1] if words else ""
    if not untrusted_json.strip():
        return Answer(version, None)
    try:
        untrusted_findings = json.loads(untrusted_json)["findings"]
        findings = [_finding(side, untrusted) for untrusted in untrusted_findings[:FINDINGS_LIMIT]]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise NoAnswerError("its answer makes no sense") from error
    return Answer(version, findings)


def _finding(side: str, untrusted: Any) -> Finding:
    level = untrusted["level"]
    if level not in LEVELS:
        raise NoAnswerError("its answer makes no sense")
    text, repair = (
        printable(str(untrusted[name] or "").encode(errors="replace"), TEXT_LIMIT)
        for name in ("text", "repair")
    )
    if not repairs.is_known(repair):
        return Finding(side, level, text)
    return Finding(side, level, text, repair, side)
