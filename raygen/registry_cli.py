"""`raygen publish`, `models` and `verify`: generators that others use, and their clips."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from raygen.data import store
from raygen.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from raygen.manifest import Manifest
    from raygen.registry import Registry
    from raygen.releases import Shelf, Version
    from raygen.runs import Run

console = Console(emoji=False)

PIPE_WIDTH = 200

Place = Annotated[str, typer.Argument(help="the registry: folder or s3:// prefix")]


def publish(
    source: Annotated[str, typer.Argument(help="a run, or an export")],
    registry: Place,
    name: Annotated[str, typer.Option(help="of the model; default: the run's")] = "",
    best: Annotated[
        bool, typer.Option("--best", help="of a run: the best checkpoint, not the newest")
    ] = False,
) -> None:
    """Publish a generator to a registry, if it passes a smoke test; the best goes live."""
    from raygen.registry import Registry
    from raygen.runs import MANIFEST, Run

    target = Registry(registry)
    uri = store.absolute(source)
    with console.status("publishing"):
        if store.exists(store.join(uri, MANIFEST)):
            run = Run.open(uri)
            if best:
                checkpoint = run.best()
                if checkpoint is None:
                    raise CheckpointError(
                        f"no checkpoint of {uri} was judged while it trained: "
                        "set evaluate.every=STEPS"
                    )
                run = run.at(checkpoint)
            version = target.publish_run(run, name)
        elif best:
            raise ConfigError(f"--best is of runs, and {source} is none")
        else:
            version = target.publish(uri, name)
    _published(target, version, registry)


def publisher(registry: str, name: str) -> Callable[[Run | str], None]:
    """What publishes a run or an export there later on, as `name`, and says so as `publish` does.

    Raises ConfigError and StorageError at once for what would be wrong then.
    """
    from raygen.registry import Registry

    target = Registry(registry)
    target.check(name)

    def publish(source: Run | str) -> None:
        if isinstance(source, str):
            version = target.publish(source, name)
        else:
            version = target.publish_run(source, name)
        _published(target, version, registry)

    return publish


def models(
    registry: Place,
    name: Annotated[str, typer.Argument(help="a model; needed where there are several")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="for machines, a list")] = False,
    by: Annotated[str | None, typer.Option(help="the best by: score, frechet, ...")] = None,
    limit: Annotated[
        list[str] | None, typer.Option(help="'clip_ms<=200', that the best meets; again; '' none")
    ] = None,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="live again, and pinned: what was live before")
    ] = False,
    pin: Annotated[str, typer.Option(help="DIGEST, live whatever is best")] = "",
    follow: Annotated[bool, typer.Option("--follow", help="the best is live again")] = False,
    yank: Annotated[str, typer.Option(help="DIGEST, never live again")] = "",
    why: Annotated[str, typer.Option(help="of --yank")] = "",
    canary: Annotated[
        str, typer.Option(help="DIGEST=SHARE, 0 to 1 of what asks for the best; none ends it")
    ] = "",
) -> None:
    """List a registry's models and what is live, or change that, one thing at a time."""
    from raygen.registry import Registry

    target = Registry(registry)
    chosen = [
        option
        for option, given in {
            "--by or --limit": by is not None or limit is not None,
            "--rollback": rollback,
            "--pin": bool(pin),
            "--follow": follow,
            "--yank": bool(yank),
            "--canary": bool(canary),
        }.items()
        if given
    ]
    if len(chosen) > 1:
        raise ConfigError(f"{' and '.join(chosen)}: one change at a time")
    if chosen:
        changed = _change(target, name, by, limit, rollback, pin, follow, yank, why, canary)
        live = changed.live
        _say(f"{changed.name}: live is {live.digest if live else 'none'}")
        return
    shelves = target.refresh()
    shown = [shelves.named(name)] if name else list(shelves.values())
    if as_json:
        sys.stdout.write(json.dumps([shelf.as_dict() for shelf in shown], indent=2) + "\n")
        return
    for shelf in shown:
        _table(shelf)


def verify(
    file: Annotated[str, typer.Argument(help="a clip: mp4, webm, webp, gif or npy")],
    registry: Annotated[str, typer.Option(help="whose model it may be: folder or s3://")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="for machines")] = False,
) -> None:
    """Say what a clip's watermark and its manifest (C2PA) tell; exit 1 where neither is there."""
    from raygen.manifest import is_mp4, read
    from raygen.provenance import verify as look
    from raygen.registry import Registry
    from raygen.watermark import DIGITS

    found = look(file)
    data = store.read_bytes(file)
    manifest, unread = None, ""
    if is_mp4(data):
        try:
            manifest = read(data)
        except ConfigError as error:
            unread = str(error)
    models = [
        f"{shelf.name} {digest}"
        for shelf in (Registry(registry).refresh().values() if registry else ())
        for digest in shelf.versions
        if (found.present and digest[:DIGITS] == found.digest)
        or (manifest is not None and manifest.intact and digest == manifest.digest)
    ]
    marked = found.present or (manifest is not None and manifest.intact)
    if as_json:
        document = asdict(found) | {"models": models}
        document["manifest"] = asdict(manifest) if manifest is not None else None
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        if found.present:
            _say(f"{file}: drawn by the model {found.digest}, says its watermark")
            _say(f"{found.pilots:.0%} of the pilot bits are right, {found.score:.1f} deviations")
        else:
            _say(f"{file}: no watermark found ({found.score:.1f} deviations)")
        if manifest is not None:
            _say(_testified(manifest))
        elif unread:
            _say(f"its manifest, if there is one, was not read: {unread}")
        if registry and marked:
            _say(f"in {registry}: {', '.join(models) or 'no such model'}")
    if not marked:
        raise typer.Exit(1)


def _testified(manifest: Manifest) -> str:
    if not manifest.intact:
        return f"its manifest does not hold: {', '.join(manifest.faults)}"
    drawn = f"drawn by {manifest.model} {manifest.digest}" if manifest.digest else "not of raygen"
    return f"its manifest is intact: {drawn}, says {manifest.signer} (whom you trust, or not)"


def _change(
    target: Registry,
    name: str,
    by: str | None,
    limit: list[str] | None,
    rollback: bool,
    pin: str,
    follow: bool,
    yank: str,
    why: str,
    canary: str,
) -> Shelf:
    if rollback:
        return target.rollback(name)
    if pin or follow:
        return target.pin(name, pin)
    if yank:
        if not why:
            raise ConfigError("--yank is for good: say --why")
        return target.yank(name, yank, why)
    if canary:
        if canary == "none":
            return target.canary(name, "", 0.0)
        digest, _, share = canary.partition("=")
        try:
            value = float(share)
        except ValueError:
            value = -1.0
        if not 0 < value <= 1:
            raise ConfigError(f"--canary {canary}: write DIGEST=SHARE, as in 0f3a5c=0.05, or none")
        return target.canary(name, digest, value)
    return target.rank(name, by, None if limit is None else [each for each in limit if each])


def _published(target: Registry, version: Version, registry: str) -> None:
    _say(f"{version.name} {version.digest}: {version.figures['clip_ms']:.1f} ms a clip here")
    _say(_standing(target.refresh()[version.name], version))
    _say(f"next: serve run serve.app:app registry={registry}")


def _standing(shelf: Shelf, version: Version) -> str:
    if shelf.live == version:
        return "live: it is pinned" if shelf.pinned else f"live: the best by {shelf.by}"
    if shelf.pinned:
        return f"not live: {shelf.pinned} is pinned (`raygen models REGISTRY --follow` ends that)"
    missed = [str(limit) for limit in shelf.limits if not limit.holds(version.figures)]
    if missed:
        return f"not live: it misses {', '.join(missed)}"
    if shelf.by not in version.figures:
        return f"not live: it has no {shelf.by} (`raygen evaluate RUN`, then publish again)"
    best = shelf.live
    assert best is not None  # this version would be
    value, least = version.figures[shelf.by], best.figures[shelf.by]
    return f"not live: its {shelf.by} is {value:.4g}, and {best.digest} has {least:.4g}"


def _table(shelf: Shelf) -> None:
    limits = "".join(f", {limit}" for limit in shelf.limits)
    table = Table(
        title=f"{shelf.name}: the best by {shelf.by}{limits}",
        title_justify="left",
        box=box.SIMPLE,
        padding=0,
    )
    columns = dict.fromkeys([shelf.by, *(limit.figure for limit in shelf.limits), "clip_ms"])
    table.add_column("digest")
    for column in columns:
        table.add_column(column, justify="right")
    table.add_column("")
    for version in shelf.versions.values():
        figures = (version.figures.get(column) for column in columns)
        cells = ["" if value is None else f"{value:.4g}" for value in figures]
        table.add_row(version.digest, *cells, _state(shelf, version))
    wide = console if console.is_terminal else Console(emoji=False, width=PIPE_WIDTH)
    wide.print(table, markup=False)


def _state(shelf: Shelf, version: Version) -> str:
    if version.digest in shelf.yanked:
        return f"yanked: {shelf.yanked[version.digest]}"
    if shelf.live == version:
        return "live, pinned" if shelf.pinned else "live"
    return f"canary, {shelf.share:.1%}" if shelf.canary == version.digest else ""


def _say(text: str) -> None:
    console.print(text, soft_wrap=True, markup=False, highlight=False)
