"""Nested sections of settings: dotted overrides, one-line errors, and YAML that explains itself.

`raygen.config` says which settings there are; here is what holds for any tree of pydantic models,
with families of variants told apart by their `kind`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from raygen.errors import ConfigError


class Section(BaseModel):
    """A branch of a tree: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


SectionT = TypeVar("SectionT", bound=Section)


def variants(annotation: Any) -> dict[str, type[Section]]:
    """Kind to section, of a union of sections told apart by `kind`; empty for anything else."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    sections = [part for part in get_args(annotation) if _is_section(part)]
    tagged = [part for part in sections if "kind" in part.model_fields]
    return {get_args(part.model_fields["kind"].annotation)[0]: part for part in tagged}


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file. Raises ConfigError where it holds none."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold keys and values, as `raygen config tiny` prints them")
    return tree


def validated(
    model: type[SectionT], tree: Mapping[str, Any], overrides: Mapping[str, Any] | Iterable[str]
) -> SectionT:
    """`tree` with the dotted `overrides` on top, as `model`.

    Raises ConfigError naming the key, the rule and the value.
    """
    merged = _copy(tree)
    pairs = overrides.items() if isinstance(overrides, Mapping) else map(_split, overrides)
    # A variant's kind goes first: it decides which keys of the other variant survive.
    for key, value in sorted(pairs, key=lambda pair: not pair[0].endswith(".kind")):
        _assign(model, merged, key, value)
    _refuse_unknown(model, merged)
    try:
        return model.model_validate(merged)
    except ValidationError as error:
        raise _explain(model, error) from None


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value of everything in a nested tree."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def describe(section: BaseModel, depth: int = 0) -> Iterator[str]:
    """Lines of YAML, each key followed by its description."""
    indent = "  " * depth
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            summary = (type(value).__doc__ or "").strip().splitlines()[0]
            yield f"{indent}{name}:  # {summary}"
            yield from describe(value, depth + 1)
        else:
            text = yaml.safe_dump(value, default_flow_style=True).split("\n")[0]
            yield f"{indent}{name}: {text}".ljust(36) + f"  # {field.description}"


def nearest(word: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """`; did you mean X?` with the closest of `known`, or nothing where none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {close[0]}?" if close else ""


def _copy(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, Mapping) else v for k, v in tree.items()}


def _split(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ConfigError(f"{text!r} is not key=value, as in optim.generator.lr=1e-4")
    try:
        parsed = yaml.safe_load(value) if value else ""
    except yaml.YAMLError:
        return key, value
    # YAML 1.1 reads 1e-4, without a dot, as a string.
    if isinstance(parsed, str):
        try:
            return key, float(parsed)
        except ValueError:
            return key, parsed
    return key, parsed


def _assign(model: type[BaseModel], tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    node, section = tree, model
    kinds: dict[str, type[Section]] = {}
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{key}: {parent} is a value, not a section", key)
        field = section.model_fields.get(parent)
        kinds = variants(field.annotation) if field else {}
        section = (field and _section_of(field.annotation, child)) or Section
        node = child
    if leaf == "kind" and value in kinds:
        for other in [name for name in node if name not in kinds[value].model_fields]:
            del node[other]
    node[leaf] = value


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _section_of(annotation: Any, value: Any) -> type[BaseModel] | None:
    if kinds := variants(annotation):
        first = next(iter(kinds))
        return kinds.get(value.get("kind", first) if isinstance(value, dict) else first)
    return annotation if _is_section(annotation) else None


def _refuse_unknown(model: type[BaseModel], tree: Mapping[str, Any], prefix: str = "") -> None:
    fields = model.model_fields
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if key not in fields:
            known = [prefix + name for name in _paths(model)]
            same_leaf = [name for name in known if name.rpartition(".")[2] == key]
            hint = nearest(path, known) or nearest(path, same_leaf, cutoff=0.0)
            raise ConfigError(f"unknown key {path}{hint}", path)
        section = _section_of(fields[key].annotation, value)
        if section is None:
            continue
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}: is a section with keys of its own (got {value!r})", path)
        _refuse_unknown(section, value, f"{path}.")


def _paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        section = _section_of(field.annotation, None)
        if section is None:
            yield prefix + name
        else:
            yield from _paths(section, f"{prefix}{name}.")


def _explain(model: type[BaseModel], error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    # A union told apart by its kind puts that kind into the path.
    parts = [str(part) for part in first["loc"]]
    kinds = variants(model.model_fields[parts[0]].annotation) if parts else {}
    key = ".".join(part for part in parts if part not in kinds)
    rule = first["msg"].removeprefix("Value error, ")
    rule = rule.removeprefix("Input should be ").replace("a valid ", "a ")
    if first["type"] == "value_error":
        return ConfigError(f"{key}: {rule}", key)
    if first["type"] == "union_tag_invalid":
        value = first["input"].get("kind")
        choice = ", ".join(kinds)
        return ConfigError(f"{key}.kind: must be one of {choice} (got {value!r})", f"{key}.kind")
    return ConfigError(f"{key}: must be {rule} (got {first['input']!r})", key)
