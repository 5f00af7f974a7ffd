# SPDX-License-Identifier: GPL-2.0-or-later
"""The question to the user, who is not there: tests answer in the user's place."""

from typing import Any


async def confirm_device_attachment(device: Any, frontends: Any) -> str:
    raise NotImplementedError
