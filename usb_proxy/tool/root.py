# SPDX-License-Identifier: GPL-2.0-or-later
"""Becoming root, by polkit."""

from __future__ import annotations

from usb_proxy.errors import SystemLackError

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
    code = host.run_here(pkexec, ["pkexec", PROGRAM, *words])
    if code in (DISMISSED, NOT_AUTHORIZED):
        raise SystemLackError("UP-722", command=command)
    return code
