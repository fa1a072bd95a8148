"""Bearer tokens: who may ask, and how often. Only their SHA-256 is kept.

    python -m serve.tokens alice --file tokens.txt --rate 5 --burst 20     # prints the token, once
    serve run serve.app:app export=exports/tiny tokens=tokens.txt

A line a token: `NAME SHA256 [rate=PER_SECOND] [burst=REQUESTS]`; a line taken out is a token
revoked, within seconds. A token is 256 random bits, which nobody can guess from a fast hash, so a
slow one (scrypt) would only cost time at every request.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from raygen.data import store
from raygen.errors import ConfigError, RaygenError

VARIABLE = "RAYGEN_TOKENS"  # lines as in a file, when there is no file
PREFIX = "rg_"  # by which a leaked token is recognised
RATE, BURST = 10.0, 40  # requests a second, and at once, where a line does not say

_LINE = re.compile(
    r"(?P<name>[A-Za-z0-9._@-]{1,64})\s+(?P<sha256>[0-9a-f]{64})"
    r"(?:\s+rate=(?P<rate>\d+(?:\.\d+)?))?(?:\s+burst=(?P<burst>[1-9]\d*))?"
)


@dataclass
class Bucket:
    """Lets `burst` requests through at once, and `rate` a second in the long run."""

    rate: float
    burst: int
    left: float = field(init=False)
    at: float = field(init=False)

    def __post_init__(self) -> None:
        self.left, self.at = float(self.burst), time.monotonic()

    def take(self, now: float) -> float:
        """Takes a request's worth at `now` (monotonic); else the seconds until there is one."""
        self.left = min(self.burst, self.left + (now - self.at) * self.rate)
        self.at = now
        if self.left >= 1:
            self.left -= 1
            return 0.0
        return (1 - self.left) / self.rate

    @property
    def full_in(self) -> float:
        """Seconds until it is full again."""
        return (self.burst - self.left) / self.rate


@dataclass(frozen=True)
class Caller:
    """Who a token belongs to."""

    name: str
    sha256: bytes
    bucket: Bucket


def parse(text: str, where: str) -> list[Caller]:
    """The callers of a file's text; empty lines and those after # count for nothing.

    Raises ConfigError, which names `where` and never shows a line: it may hold a token.
    """
    callers: dict[str, Caller] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if found is None or float(found["rate"] or 1) <= 0 or found["name"] in callers:
            raise ConfigError(
                f"{where}, line {number}: not NAME SHA256 [rate=N] [burst=N], each name once; "
                "`python -m serve.tokens NAME --file FILE` writes such a line",
                "tokens",
            )
        bucket = Bucket(float(found["rate"] or RATE), int(found["burst"] or BURST))
        callers[found["name"]] = Caller(found["name"], bytes.fromhex(found["sha256"]), bucket)
    if not callers:
        raise ConfigError(f"{where} holds no token; `python -m serve.tokens` makes one", "tokens")
    return list(callers.values())


def read(uri: str) -> list[Caller]:
    """The callers of a file or s3:// object. Raises ConfigError and StorageError."""
    return parse(store.read_bytes(uri).decode(errors="replace"), uri)


def kept(old: list[Caller], new: list[Caller]) -> list[Caller]:
    """`new`, with what the same callers have used up of the same allowance."""
    before = {caller.name: caller for caller in old}
    for caller in new:
        known = before.get(caller.name)
        if known and (known.bucket.rate, known.bucket.burst) == (
            caller.bucket.rate,
            caller.bucket.burst,
        ):
            caller.bucket.left, caller.bucket.at = known.bucket.left, known.bucket.at
    return new


def find(callers: list[Caller], token: bytes) -> Caller | None:
    """Whose token it is, in a time that depends on how many there are and not on which it is."""
    digest = hashlib.sha256(token).digest()
    found = None
    for caller in callers:
        if hmac.compare_digest(caller.sha256, digest):
            found = caller
    return found


def make(name: str, rate: float | None = None, burst: int | None = None) -> tuple[str, str]:
    """A new token, and the line for its file. Raises ConfigError for a name that is none."""
    token = PREFIX + secrets.token_urlsafe(32)
    words = [name, hashlib.sha256(token.encode()).hexdigest()]
    words += [] if rate is None else [f"rate={round(rate, 3)}"]
    words += [] if burst is None else [f"burst={burst}"]
    line = " ".join(words)
    if not _LINE.fullmatch(line):
        raise ConfigError(f"{name!r} is no name; take letters, digits and . _ @ -", "name")
    return token, line


commands = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@commands.command()
def add(
    name: Annotated[str, typer.Argument(help="whose token it is")],
    file: Annotated[Path, typer.Option(help="which the line is added to")],
    rate: Annotated[float | None, typer.Option(min=0.01, help="requests a second")] = None,
    burst: Annotated[int | None, typer.Option(min=1, help="requests at once")] = None,
) -> None:
    """Make a token: it is printed once, and FILE keeps its hash alone."""
    text = file.read_text() if file.is_file() else ""
    token, line = make(name, rate, burst)
    parse(f"{text}\n{line}", str(file))  # a name that is there already, a file that is another
    text += "" if not text or text.endswith("\n") else "\n"
    store.write_bytes(str(file.resolve()), f"{text}{line}\n".encode())
    file.chmod(0o600)
    typer.echo(token)


if __name__ == "__main__":
    try:
        commands()
    except RaygenError as error:
        sys.exit(f"serve.tokens: {error}")
