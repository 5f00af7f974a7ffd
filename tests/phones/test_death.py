# SPDX-License-Identifier: GPL-2.0-or-later
"""The exporter of a phone is killed before every step that other exporters do not take."""

from functools import partial

import pytest

from tests.faults import steps
from tests.faults.conftest import Faults
from tests.integration.conftest import Qubes

from .conftest import Phone

STEPS: tuple[str, ...] = ()
"""Those of an attach, and of the detach from there on, that change something outside or wait."""


def of_a_phone(recording: tuple[str, ...]) -> tuple[str, ...]:
    """The steps of a recording that an ordinary device has no part in."""
    return tuple(
        step for step in steps.changes(recording) if step not in steps.EXPORT + steps.EXPORT_END
    )


def test_steps_are_those_of_a_recording(qubes: Qubes, phone: Phone, faults: Faults) -> None:
    """A new step of the product has to be added above, and is part of the test below by that."""

    def there_and_back() -> None:
        phone.attached()
        assert qubes.take_back(phone.bus_id).code == 0

    seen = faults.record(there_and_back)
    for name, s in seen.items(): print(name, *s, sep="\n")
    assert of_a_phone(seen["sys-usb", "usb-export"]) == STEPS


@pytest.mark.parametrize("step", STEPS)
def test_the_exporter_is_killed(qubes: Qubes, phone: Phone, faults: Faults, step: str) -> None:
    faults.arm(qubes.backend, "usb-export", step, "KILL")
    qubes.attach(phone.bus_id)
    qubes.detach(phone.bus_id)
    assert faults.await_fired(qubes.backend)[1] == f"usb-export: {step}"
    assert qubes.await_clean(40) == []
    assert phone.settled() == phone.bus_id
    phone.attached()
    assert qubes.take_back(phone.bus_id).code == 0
