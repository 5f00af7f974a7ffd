# SPDX-License-Identifier: GPL-2.0-or-later
"""The real `qvm-usb`: CORE_ADMIN_CLIENT, a checkout of qubes-core-admin-client.

The real qubesd answers it, where CORE_ADMIN is given, too.
"""

import os

import pytest

from .conftest import check, part


@pytest.fixture
def parts() -> dict[str, str]:
    client = part("CORE_ADMIN_CLIENT", "qubesadmin/app.py", "qubesadmin/tools/qvm_device.py")
    parts = {"CORE_ADMIN_CLIENT": str(client)}
    if os.environ.get("CORE_ADMIN"):
        parts["QUBES_CORE_ADMIN"] = str(part("CORE_ADMIN", "qubes/api/admin.py"))
        parts["PYTHONPATH"] = str(part("QREXEC", "qrexec/policy/parser.py"))
    return parts


@pytest.mark.timeout(300)
def test_it_prints_what_the_imitation_prints(parts: dict[str, str]) -> None:
    assert "skipped" not in check("tests/dom0/test_client.py", **parts)
    assert "skipped" not in check("tests/dom0/test_client.py", **parts | {"QUBES_CORE_ADMIN": ""})


@pytest.mark.timeout(1800)
def test_it_prints_what_the_documents_show(parts: dict[str, str]) -> None:
    check("tests/integration/test_documents.py", **parts)
