# SPDX-License-Identifier: GPL-2.0-or-later
"""Becoming root, by polkit."""

from __future__ import annotations

import os

from usb_proxy.errors import SystemLackError, reason
from usb_proxy.host import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from usb_proxy.host import Host

PROGRAM = "/usr/bin/qubes-usb-proxy"
"""By this name the actions in polkit/ know it."""

DISMISSED, NOT_AUTHORIZED = 126, 127
"""Exit codes of pkexec(1)."""


def run(host: Host, words: Sequence[str]) -> int:
    """Run `qubes-usb-proxy WORDS` as root, asking for the administrator: its exit code.

    SystemLackError when there is nobody to ask, or the answer is no.
    """
    command = " ".join(["qubes-usb-proxy", *words])
    pkexec = host.find_command("pkexec")
    if pkexec is None:
        raise SystemLackError("UP-721", command=command)
    try:
        # A child starts with no signal blocked, and dies of a closed pipe, as others do.
        pid = os.posix_spawn(
            pkexec,
            ["pkexec", PROGRAM, *words],
            host.environment,
            setsigmask=[],
            setsigdef=[signal.SIGPIPE],
        )
    except OSError as error:
        raise SystemLackError("UP-702", command="pkexec", reason=reason(error)) from error
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code in (DISMISSED, NOT_AUTHORIZED):
        raise SystemLackError("UP-722", command=command)
    return code if code >= 0 else 128 - code
