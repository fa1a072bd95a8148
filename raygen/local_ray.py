"""A local Ray that a command starts serves nobody else. To be asked before Ray is imported."""

from __future__ import annotations

import os
import secrets

_guarded: list[bool] = []


def guard() -> None:
    """Has the Ray that this process may start ask for a token that only its processes have.

    Ray listens on every interface and runs what it is sent, and reads its environment when it is
    imported. What the user has set stays; a cluster of RAY_ADDRESS is not concerned.
    """
    if "RAY_ADDRESS" not in os.environ and "RAY_AUTH_MODE" not in os.environ:
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
        _guarded.append(True)


def let_go() -> None:
    """For a Ray that somebody else started, which asks for what the user's environment has."""
    if _guarded:
        del os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"]
        _guarded.clear()
