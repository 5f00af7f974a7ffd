# SPDX-License-Identifier: GPL-2.0-or-later
"""The sentence of a failure: its words, its id, and that this gets through to the user."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usb_proxy import errors
from usb_proxy.catalogue import ENTRIES
from usb_proxy.errors import NoDeviceError, PeerError, printable, sentence


def test_a_sentence_has_its_id_behind_it() -> None:
    error = NoDeviceError("UP-301", target="9-9")
    assert str(error) == ("no USB device 9-9 is plugged in; see 'qvm-usb list' in dom0 [UP-301]")
    assert (error.id, error.fields) == ("UP-301", {"target": "9-9"})


def test_what_a_peer_sent_is_filled_in_and_not_looked_into() -> None:
    assert "answer: '{target.__class__} %s' is" in str(
        PeerError("UP-602", answer="{target.__class__} %s")
    )


def test_the_id_of_what_is_quoted_is_the_one() -> None:
    quoted = f"sys-usb says: usb-export: {NoDeviceError('UP-301', target='9-9')}"
    text = sentence("UP-608", device="9-9", backend="sys-usb", quoted=quoted)
    assert text == f"9-9 of sys-usb is not attached: {quoted}"
    text = sentence("UP-608", device="9-9", backend="sys-usb", quoted="sys-usb says: no")
    assert text == "9-9 of sys-usb is not attached: sys-usb says: no [UP-608]"


@pytest.mark.parametrize(
    ("fields", "said"),
    [({}, "[UP-000]"), ({"device": "2-1", "port": 3}, "device 2-1, port 3 [UP-000]")],
)
def test_another_programs_catalogue_is_no_traceback(fields: dict[str, object], said: str) -> None:
    """The files may have been replaced while the program ran."""
    assert str(PeerError("UP-000", **fields)) == said


def test_without_a_catalogue_the_id_is_told() -> None:
    """No files can be opened any more: the limit is reached, or they are gone."""
    code = (
        "import resource, sys; sys.path.append(sys.argv[1])\n"
        "from usb_proxy.errors import PeerError\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3)); print(PeerError('UP-614'))"
    )
    folder = errors.__file__.removesuffix("usb_proxy/errors.py")
    done = subprocess.run(
        [sys.executable, "-ISc", code, folder], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("[UP-614]\n", "")


@given(name=st.sampled_from(sorted(ENTRIES)), filling=st.text(max_size=600))
def test_the_id_gets_through_to_dom0(name: str, filling: str) -> None:
    """Whatever is filled in: `usb-attach` and then dom0 quote it, and each bounds it."""

    class Any(dict[str, object]):
        def __missing__(self, field: str) -> object:
            return 7 if field in ("devid", "seconds") else filling

    text = f"{ENTRIES[name][0].format_map(Any())} [{name}]"
    for key in ("backend", "qube"):
        text = f"{key} says: {printable(text.encode(errors='replace'))}"
    assert text.endswith(f" [{name}]")
    assert len(text) < 620
