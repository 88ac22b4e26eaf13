"""Read settings from YAML and dotted flags; an unknown name or a wrong type is told in one line."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from sacl.errors import ConfigError
from sacl.settings import RunConfig

Record = TypeVar("Record")


def load_config(path: Path | None, flags: Mapping[str, str] | None = None) -> RunConfig:
    """Return a run's settings: the defaults, changed by a YAML file, changed by dotted flags.

    Args:
        path: YAML file; None for the defaults.
        flags: values as text by dotted name, for example `{"pretrain.steps": "200"}`.

    Raises:
        ConfigError: the file cannot be read, a name is unknown or a value has a wrong type.
    """
    tree = read_yaml(path) if path else {}
    for name, text in (flags or {}).items():
        _plant(tree, name, text)
    return _beside_the_data(from_mapping(RunConfig, tree))


def from_mapping(kind: type[Record], tree: Mapping[str, Any], where: str = "") -> Record:
    """Return a settings record from nested mappings.

    Raises:
        ConfigError: naming the setting, what it got and expected, or the nearest known name.
    """
    known = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    values = {}
    for key, value in tree.items():
        name = f"{where}{key}"
        if key not in known:
            raise ConfigError(f"unknown setting '{name}'{nearest(name, kind)}")
        values[key] = _convert(hints[key], value, name)
    return kind(**values)


def overridden(config: RunConfig, overrides: Mapping[str, Any]) -> RunConfig:
    """Return settings with some changed, by dotted name (`{"pretrain.steps": 200}`) or by block.

    Raises:
        ConfigError: a name is unknown or a value has a wrong type.
    """
    tree = dataclasses.asdict(config)
    for name, value in flat_settings(overrides).items():
        if name not in dotted_settings():
            raise ConfigError(f"unknown setting '{name}'{nearest(name)}")
        *blocks, leaf = name.split(".")
        functools.reduce(lambda inner, block: inner[block], blocks, tree)[leaf] = value
    return from_mapping(RunConfig, tree)


def flat_settings(overrides: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Return settings in nested blocks by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in overrides.items():
        if isinstance(value, Mapping):
            found |= flat_settings(value, f"{where}{key}.")
        else:
            found[f"{where}{key}"] = value
    return found


def dotted_settings(kind: type = RunConfig, where: str = "") -> dict[str, tuple[Any, Any, str]]:
    """Return type, default and description of every setting by its dotted name."""
    found: dict[str, tuple[Any, Any, str]] = {}
    hints = typing.get_type_hints(kind)
    described = descriptions(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            found |= dotted_settings(typing.cast(type, hint), f"{where}{field.name}.")
        else:
            default = field.default
            found[where + field.name] = (hint, default, described.get(field.name, ""))
    return found


@functools.cache
def descriptions(kind: type) -> dict[str, str]:
    """Return the docstring under each field of a settings class."""
    tree = ast.parse(inspect.getsource(sys.modules[kind.__module__]))
    classes = (node for node in tree.body if isinstance(node, ast.ClassDef))
    body = next(node.body for node in classes if node.name == kind.__name__)
    found = {}
    for field, text in itertools.pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            found[field.target.id] = " ".join(str(text.value.value).split())
    return found


def type_name(hint: Any) -> str:
    """Return a type as a user would say it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " | ".join(str(a) for a in arguments)
    if _is_union(hint):
        return " or ".join("null" if a is type(None) else type_name(a) for a in arguments)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"list of {type_name(arguments[0])}"
        return f"list of {len(arguments)} {type_name(arguments[0])}"
    return {int: "integer", float: "number", bool: "true or false", str: "text"}.get(
        hint, getattr(hint, "__name__", str(hint)).lower()
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the settings of a YAML file as nested mappings; an empty file has none.

    Raises:
        ConfigError: the file cannot be read, or holds no settings by name.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path.name}: cannot be read, {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name}: not YAML, {' '.join(str(error).split())}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path.name}: expected settings by name, got {type(tree).__name__}")
    return tree


def _plant(tree: dict[str, Any], name: str, text: str) -> None:
    hint = dotted_settings().get(name)
    if hint is None:
        raise ConfigError(f"unknown setting '--{name}'{nearest(name)}")
    *blocks, leaf = name.split(".")
    for block in blocks:
        inner = tree.setdefault(block, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{block}: expected settings by name, got {inner!r}")
        tree = inner
    tree[leaf] = _from_text(hint[0], text)


def _from_text(hint: Any, text: str) -> Any:
    """Read a flag's value: a list may be written `1,2,3` or `[1, 2, 3]`.

    Where either text or a list will do, only `[...]` is a list.
    """
    kinds = typing.get_args(hint) if _is_union(hint) else (hint,)
    wants_text = not {str, Path}.isdisjoint(kinds) and not text.startswith("[") and text != "null"
    if typing.get_origin(hint) is tuple and not text.startswith("["):
        text = f"[{text}]"
    try:
        return text if wants_text else yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def nearest(name: str, kind: type = RunConfig) -> str:
    """Return `; did you mean '...'?` for a setting's misspelled name, or where to look."""
    kind = kind if "." not in name else RunConfig
    known = list(dotted_settings(kind)) + [f.name for f in dataclasses.fields(kind)]
    leaf = {k.rsplit(".", 1)[-1]: k for k in reversed(known)}
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    if not close:
        short = difflib.get_close_matches(name.rsplit(".", 1)[-1], list(leaf), n=1, cutoff=0.6)
        close = [leaf[s] for s in short]
    return f"; did you mean '{close[0]}'?" if close else "; see --help for all settings"


def _convert(hint: Any, value: Any, name: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name}: expected settings by name, got {value!r}")
        return from_mapping(typing.cast(type, hint), value, f"{name}.")
    if _is_union(hint):
        return _convert_union(arguments, value, name)
    if origin is tuple:
        return _convert_tuple(arguments, value, name)
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name}: expected settings by name, got {value!r}")
        return {str(key): _convert(arguments[1], v, f"{name}.{key}") for key, v in value.items()}
    if origin is Literal:
        return _one_of(arguments, value, name)
    return value if hint is Any else _scalar(hint, value, name)


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (types.UnionType, typing.Union)


def _convert_union(arguments: Sequence[Any], value: Any, name: str) -> Any:
    """Convert to the kind that suits: a list to the tuple, anything else to what is none."""
    if value is None and type(None) in arguments:
        return None
    kinds = [a for a in arguments if a is not type(None)]
    origins: list[Any] = [typing.get_origin(a) for a in kinds]
    lists = [a for a, origin in zip(kinds, origins, strict=True) if origin is tuple]
    return _convert(
        (lists if lists and isinstance(value, (list, tuple)) else kinds)[0], value, name
    )


def _convert_tuple(arguments: Sequence[Any], value: Any, name: str) -> tuple[Any, ...]:
    hint = tuple.__class_getitem__(tuple(arguments))
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{name}: expected a {type_name(hint)}, got {value!r}")
    if arguments[-1] is Ellipsis:
        return tuple(_convert(arguments[0], v, f"{name}[{n}]") for n, v in enumerate(value))
    if len(value) != len(arguments):
        raise ConfigError(f"{name}: expected a {type_name(hint)}, got {len(value)} in {value!r}")
    pairs = zip(arguments, value, strict=True)
    return tuple(_convert(a, v, f"{name}[{n}]") for n, (a, v) in enumerate(pairs))


def _one_of(choices: Sequence[Any], value: Any, name: str) -> Any:
    if value in choices and not isinstance(value, bool):
        return value
    close = difflib.get_close_matches(str(value), [str(c) for c in choices], n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    listed = ", ".join(str(c) for c in choices)
    raise ConfigError(f"{name}: expected one of {listed}, got {value!r}{hint}")


def _scalar(hint: Any, value: Any, name: str) -> Any:
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
        try:
            return float(value)
        except ValueError:
            pass
    if hint is Path and isinstance(value, (str, Path)):
        return Path(value).expanduser()
    if isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise ConfigError(f"{name}: expected {type_name(hint)}, got {value!r}")


def _beside_the_data(config: RunConfig) -> RunConfig:
    """Look for the cohort's tables in the working directory first, then beside the data."""
    changed: dict[str, Any] = {}
    for name in ("scan_labels", "labeled_order"):
        path: Path | None = getattr(config.ingest, name)
        if path is None or path.exists():
            continue
        beside = [data / path for data in config.ingest.sources if (data / path).exists()]
        if beside:
            changed[name] = beside[0]
    return dataclasses.replace(config, ingest=dataclasses.replace(config.ingest, **changed))


def settings_page() -> str:
    """Return the reference page of all settings, in Markdown."""
    lines = ["# Settings", "", "Every YAML key and dotted flag, its type, default and meaning."]
    block = None
    for name, (hint, default, text) in dotted_settings().items():
        head = name.split(".")[0] if "." in name else "run"
        if head != block:
            block = head
            lines += [
                f"## {head}",
                "",
                "| setting | type | default | meaning |",
                "|---|---|---|---|",
            ]
        value = "" if default in (None, dataclasses.MISSING) else str(default)
        cells = (name, type_name(hint).replace(" | ", ", "), value, text)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(settings_page(), end="")  # noqa: T201
