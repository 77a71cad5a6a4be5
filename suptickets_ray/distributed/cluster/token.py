"""The token that a Ray asks for: where it is, and how this process shows it."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

import ray

TOKEN_PATH = "~/.ray/auth_token"  # noqa: S105 - the path of the token, not the token
_NO_TOKEN = (
    "Cannot join the Ray cluster at {address}: it requires a token, and this process has none. Put the token into "
    + TOKEN_PATH
    + " (mode 0600), or into RAY_AUTH_TOKEN."
)


def enable_token(address: str) -> None:
    """Makes this process send its token, which Ray does not do by default for an explicit address.

    Raises:
        ValueError: If there is no token, or RAY_AUTH_MODE disables it.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        raise ValueError(
            f"Cannot join the Ray cluster at {address}: it requires a token, and RAY_AUTH_MODE="
            f"{os.environ['RAY_AUTH_MODE']} disables tokens. Unset RAY_AUTH_MODE, or set it to token."
        )
    if not requires_token():
        raise ValueError(_NO_TOKEN.format(address=address))
    os.environ["RAY_AUTH_MODE"] = "token"
    # Ray read the mode when it was imported. This is its own call to read it again; there is no public API.
    ray._raylet.Config.initialize("")


def token_headers() -> list[tuple[str, str]]:
    """Returns the headers with which Ray sends this process's token; there is no public API."""
    return list(ray._raylet.AuthenticationTokenLoader.instance().get_token_for_http_header().items())


def has_token() -> bool:
    """Returns whether a local Ray needs no new token, because one exists or the environment disables tokens."""
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    wanted = os.environ.get("RAY_AUTH_MODE", "token").lower() == "token"
    return bool(named) or not wanted or Path(TOKEN_PATH).expanduser().exists()


def ensure_token() -> None:
    """Creates the token of a local Ray if it is missing. Ray itself would create a file that all users can read."""
    path = Path(TOKEN_PATH).expanduser()
    if has_token():
        restrict_token_file()
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))  # the format of Ray's own tokens
    with suppress(FileExistsError):  # another process created one first, which is kept
        path.hardlink_to(temporary)
    temporary.unlink()


def restrict_token_file() -> None:
    """Makes the token file readable by its owner only, because Ray creates it readable by all users."""
    path = Path(TOKEN_PATH).expanduser()
    with suppress(OSError):  # missing, or owned by another user
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)


def requires_token() -> bool:
    """Returns whether this process has a token. A Ray that it starts then requires the token from every client."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() == "disabled":
        return False
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(named) or Path(TOKEN_PATH).expanduser().is_file()
