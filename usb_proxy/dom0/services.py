# SPDX-License-Identifier: GPL-2.0-or-later
"""dom0's calls to the services in the qubes, and what the user reads when they fail."""

from __future__ import annotations

import asyncio
from subprocess import DEVNULL, CalledProcessError
from typing import TYPE_CHECKING

from usb_proxy.dom0.device import UNKNOWN_IDS
from usb_proxy.dom0.qubesd import QubesException
from usb_proxy.errors import ExitCode, RequestError, in_words, printable, sentence
from usb_proxy.idents import STUB_DOMAIN_SUFFIX, BusId, DomainName

if TYPE_CHECKING:
    from usb_proxy.dom0.device import USBDevice
    from usb_proxy.dom0.policy import CallRules
    from usb_proxy.dom0.qubesd import Qube

ATTACH_SECONDS = 125.0
"""More than qubes.USBAttach waits for its call, so that it is the one to tell why."""

DETACH_SECONDS = 60.0

REFUSED = 126
"""qrexec's exit code for a call that was not allowed; 127 is a service that is not there."""
NOT_INSTALLED = 127

ANY_INTERFACE = "usb-any-interface"
"""The feature of a qube that gets a device whatever it turns out to be."""

_HOPELESS = frozenset({REFUSED, NOT_INSTALLED, ExitCode.REQUEST})


class ServiceError(QubesException):
    """A service failed; `hopeless` if it will fail in the same way when it is called again."""

    def __init__(self, message: str, *, hopeless: bool = False) -> None:
        super().__init__(message)
        self.hopeless = hopeless


def has_stub_domain(vm: Qube) -> bool:
    """Whether USB devices of a qube go to its stub domain, which has a qrexec agent of its own."""
    return vm.virt_mode == "hvm" and bool(vm.features.check_with_template("stubdom-qrexec", False))


def told(vm: Qube, device: USBDevice) -> str:
    """What qubes.USBAttach is told that the device is, `VVVV:PPPP CCSSPP…`; may be nothing.

    `*` is any interface, where the backend names none. A QubesException if the qube denies some,
    and the backend names none, or no product.
    """
    if vm.features.check_with_template(ANY_INTERFACE, False):
        return ""
    is_unknown = device.ids == UNKNOWN_IDS  # What arrives could not be compared with it.
    if (is_unknown or not device.interface_codes) and getattr(vm, "devices_denied", None):
        raise QubesException(sentence("UP-943", port=device.port, qube=vm.name))
    if has_stub_domain(vm) or is_unknown:
        return ""
    return f"{device.ids} {' '.join(dict.fromkeys(device.interface_codes)) or '*'}"


async def attach(vm: Qube, backend: Qube, port: str, rules: CallRules, device: str = "") -> None:
    """Return when the device can be used in `vm`; ServiceError with the reason if it cannot.

    `device` is what `told` gives. Programs that know nothing of it read the first line alone.
    """
    stubdom = has_stub_domain(vm)
    try:
        bus_id = BusId(port)
        source = DomainName(vm.name + STUB_DOMAIN_SUFFIX if stubdom else vm.name)
        target = DomainName(backend.name)
    except RequestError as error:
        raise ServiceError(str(error), hopeless=True) from error
    with rules.allowing(source, target, bus_id):
        request = f"{target} {bus_id}" + (f"\n{device}" if device else "")
        untrusted_said = await _call(vm, "qubes.USBAttach", request, ATTACH_SECONDS, stubdom)
    if b"[UP-" in untrusted_said:
        vm.log.warning("%s", sentence("UP-942", qube=vm.name, quoted=printable(untrusted_said)))


async def detach(vm: Qube, backend: Qube, port: str) -> None:
    """Return when the backend has the device back, or at least `vm` has it no more.

    The backend is asked first, since it answers when the device is free again for others.
    """
    try:
        await _call(backend, "qubes.USBDetach", port, DETACH_SECONDS)
    except QubesException as error:
        try:
            request = f"{backend.name} {port}"
            await _call(vm, "qubes.USBDetach", request, DETACH_SECONDS, has_stub_domain(vm))
        except QubesException as second:
            raise ServiceError(in_words([error, second])) from second


async def _call(
    vm: Qube, service: str, request: str, seconds: float, stubdom: bool = False
) -> bytes:
    """Run a service; gives its stderr (QubesVM.run_service_for_stdio in qubes/vm/qubesvm.py)."""
    options: dict[str, object] = {"stubdom": True} if stubdom else {}  # AdminVM's has none
    try:
        async with asyncio.timeout(seconds):
            _, untrusted_errors = await vm.run_service_for_stdio(
                service, user="root", input=f"{request}\n".encode(), stdout=DEVNULL, **options
            )
    except CalledProcessError as error:
        raise _failure(vm.name, service, error.returncode, error.stderr) from error
    except TimeoutError as error:
        raise ServiceError(
            sentence("UP-909", service=service, qube=vm.name, seconds=seconds)
        ) from error
    except OSError as error:
        raise ServiceError(
            sentence("UP-910", service=service, qube=vm.name, reason=error)
        ) from error
    return untrusted_errors or b""


def _failure(name: str, service: str, code: int, untrusted_errors: bytes | None) -> ServiceError:
    # qvm-usb formats the text that it gets with `%` (QubesException of qubes-core-admin-client).
    said = printable(untrusted_errors or b"").replace("%", "%%")
    if code == NOT_INSTALLED:
        message = sentence("UP-911", qube=name)
    elif code == REFUSED:
        why = f": {said}" if said else ""
        message = sentence("UP-912", service=service, qube=name, said=why)
    elif said:
        message = sentence("UP-913", qube=name, quoted=said)
    else:
        message = sentence("UP-914", service=service, qube=name, code=code)
    return ServiceError(message, hopeless=code in _HOPELESS)
