"""A secret that a device and who measures on it share: it is proven, not sent.

It keeps tuners away from devices that aren't meant for them. It is no protection against an attacker: TVM's RPC runs
whatever code it is sent, for everyone who reaches its port and knows the key, which the tracker tells to all.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path

from greencc.errors import UserError

VARIABLE = "GREENCC_DEVICE_TOKEN"


def read_token(file: Path | None) -> str:
    """The token of a file, or else of the environment; empty where there is none.

    Raises:
        UserError: the file can't be read, or is empty.
    """
    if file is None:
        return os.environ.get(VARIABLE, "").strip()
    try:
        token = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--token-file {file}: can't be read: {error}") from error
    if not token:
        raise UserError(f"--token-file {file}: the file is empty")
    return token


def proof(token: str, challenge: str) -> str:
    """What shows to who asked `challenge` that one knows the token."""
    return hmac.new(token.encode(), challenge.encode(), hashlib.sha256).hexdigest()
