"""Settings from YAML and dotted flags; an unknown name or a wrong value is an error of one line."""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
import itertools
import re
import sys
import types
import typing
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import yaml

from sacl.checked import Checked, as_list, block_of, converted_value, shown
from sacl.errors import ConfigError
from sacl.settings import RunConfig

Record = TypeVar("Record", bound=Checked)
Tree = dict[str, Any]
"""Settings by name, nested as in YAML."""

EXCLUSIVE_BLOCKS = (
    *("locate.slices", "locate.volume", "locate.maps"),
    *("finetune.dense", "finetune.query"),
)
"""Blocks of which a stage has one; a flag that gives a whole one takes the others' place."""
_SHIPPED = Path(__file__).parents[1] / "runs"
_TABLES = ("scan_labels", "labeled_order")
_MOST_BYTES = 1_000_000
"""A file of settings is smaller."""
_FLOAT = r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]{1,3})?$"


@dataclass(frozen=True)
class Declared:
    """A setting as it is declared: its type, its default and what it means."""

    hint: Any
    default: Any
    text: str

    @property
    def kind(self) -> str:
        """The type as a user would say it."""
        return _type_name(self.hint)

    @property
    def usual(self) -> str:
        """The default as text, empty where there is none."""
        values = self.default if isinstance(self.default, tuple) else (self.default,)
        given = [v for v in values if v is not None and v is not msgspec.NODEFAULT]
        return ", ".join(str(v).lower() if isinstance(v, bool) else str(v) for v in given)


def load_config(
    path: Path | str | None,
    flags: Mapping[str, str] | None = None,
    maps: Path | None = None,
    base: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Return a run's settings: the defaults, changed by a YAML file, changed by dotted flags.

    The file is given by its path, or by the name of one that comes with the program; without one
    the flags change a `base` by dotted name, in which None stands for a whole block. `maps` are
    label maps to locate by, in place of what the file says of locating.

    Raises:
        ConfigError: the file cannot be read, a name is unknown or a value is not allowed.
    """
    file = config_file(path) if path else None
    tree = read_yaml(file) if file else {}
    for name, value in (base or {}).items():
        plant(tree, name, {} if value is None else value)
    named = _block(tree, "ingest").keys() & set(_TABLES)
    for name, text in (flags or {}).items():
        if name in EXCLUSIVE_BLOCKS:
            drop_rivals(tree, name)
            plant(tree, name, _parsed(text, f"--{name}: "))
        elif name in dotted_settings():
            plant(tree, name, _from_text(dotted_settings()[name].hint, text))
        else:
            raise ConfigError(f"unknown setting '--{name}'{nearest(name, '--')}")
    if _block(tree, "finetune").get("volume") is not None and _block(tree, "pretrain"):
        _pretrain_on_volumes(tree)
    if maps is not None:
        tree["locate"] = {"maps": {**_block(tree, "locate.maps"), "source": str(maps)}}
    named -= {name.removeprefix("ingest.") for name in flags or {}}
    return _with_tables(from_mapping(RunConfig, tree), file.parent if file else None, named)


def _pretrain_on_volumes(tree: Tree) -> None:
    """Let settings of `pretrain` beside `finetune.volume` be of volumes, in place."""
    tree["pretrain"] = {"network": "unet3d", **tree["pretrain"]}
    if tree["pretrain"].get("method") != "none" and _block(tree, "finetune.volume") is not None:
        plant(tree, "finetune.volume", {"pretrained": True, **_block(tree, "finetune.volume")})


def config_file(name: Path | str) -> Path:
    """Return a settings file by its path, or by the name of one that comes with the program.

    A name of neither is refused.
    """
    path, names = Path(name), shipped()
    if path.exists() or path.suffix in (".yaml", ".yml"):
        return path
    if str(name) in names:
        return names[str(name)]
    raise ConfigError(f"{name}: no such file; shipped configurations are {', '.join(names)}")


def is_config(word: str) -> bool:
    """Tell whether a word names a settings file: by its ending, or one that is shipped."""
    return word.endswith((".yaml", ".yml")) or (word in shipped() and not Path(word).exists())


def shipped() -> dict[str, Path]:
    """Return the files of settings that come with the program, by name."""
    return {path.stem: path for path in sorted(_SHIPPED.glob("*.yaml"))}


def from_mapping(kind: type[Record], tree: Tree) -> Record:
    """Return a settings record from nested mappings.

    A ConfigError names the setting, what it got and expected, or the nearest known name.
    """
    _require_known(kind, tree, "")
    ingest = tree.get("ingest")
    if isinstance(ingest, Mapping) and "data" in ingest:
        tree = {**tree, "ingest": {**ingest, "data": as_list(ingest["data"])}}
    return converted_value(tree, kind, "")


@functools.cache
def dotted_settings(kind: type[Checked] = RunConfig) -> dict[str, Declared]:
    """Return every setting of a record and of its blocks, by dotted name."""
    settings: dict[str, Declared] = {}
    texts = descriptions(kind)
    for declared in msgspec.structs.fields(kind):
        block = block_of(declared.type)
        if block is not None:
            settings |= dotted_settings(block)
        else:
            text = texts.get(declared.name, "")
            name = kind.block + declared.name
            settings[name] = Declared(declared.type, declared.default, text)
    return settings


@functools.cache
def descriptions(kind: type) -> dict[str, str]:
    """Return the docstring under each field of a settings class."""
    tree = ast.parse(inspect.getsource(sys.modules[kind.__module__]))
    classes = (node for node in tree.body if isinstance(node, ast.ClassDef))
    body = next(node.body for node in classes if node.name == kind.__name__)
    texts = {}
    for pair in itertools.pairwise(body):
        match pair:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=text)):
                texts[name] = " ".join(str(text).split())
    return texts


def nearest(name: str, dashes: str = "") -> str:
    """Return `; did you mean '...'?` for a setting's misspelled name, or where to look."""
    known = list(dotted_settings()) + list(RunConfig.__struct_fields__)
    leaf = {k.rsplit(".", 1)[-1]: k for k in reversed(known)}
    close = difflib.get_close_matches(name[:100], known, n=1, cutoff=0.75)
    if not close:
        short = difflib.get_close_matches(
            name[-100:].rsplit(".", 1)[-1], list(leaf), n=1, cutoff=0.7
        )
        close = [leaf[s] for s in short]
    return f"; did you mean '{dashes}{close[0]}'?" if close else "; see --help for all settings"


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain values: `1e-3` is a number; dates, `yes` and `010` mean nothing special.

    A key that stands twice is refused, and there are no merge keys.
    """

    yaml_implicit_resolvers = {}  # noqa: RUF012 - of the base class

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping whose keys are all different."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                line = key.start_mark.line + 1
                raise ConfigError(f"line {line}: '{key.value}' appears twice; give it once")
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?[0-9]{1,18}$", list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))
_Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: float(node.value))


def read_yaml(path: Path) -> Tree:
    """Return the settings of a YAML file as nested mappings; an empty file has none.

    A file that cannot be read, or holds no settings by name, is refused.
    """
    tree = _parsed(_bytes_of(path), f"{path}: ") or {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected settings by name, got {type(tree).__name__}")
    nested: Tree = {}
    for key, value in tree.items():
        if not isinstance(key, str):
            raise ConfigError(f"{path}: expected settings by name, got {shown(key)}")
        block, _, leaf = key.rpartition(".")
        if leaf in _block(nested, block):
            raise ConfigError(f"{path}: {key} is given twice, by block and by dotted name")
        plant(nested, key, value)
    return nested


def _bytes_of(path: Path) -> bytes:
    try:
        if not path.is_file() and path.exists():
            raise ConfigError(f"{path}: expected a file of settings; give its path")
        if path.stat().st_size > _MOST_BYTES:
            raise ConfigError(
                f"{path}: larger than any settings file ({_MOST_BYTES} bytes); check it"
            )
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: cannot be read, {reason}; give the path of a file") from error


def _parsed(text: str | bytes, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from None
    except RecursionError:
        raise ConfigError(f"{where}not YAML, it is nested too deeply; check the brackets") from None
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{where}not YAML, {reason[:300]}") from error


def _require_known(kind: type[Checked], tree: Any, where: str) -> None:
    if not isinstance(tree, Mapping):
        return
    hints = {declared.name: declared.type for declared in msgspec.structs.fields(kind)}
    for key, value in tree.items():
        if key not in hints:
            name = f"{where}{str(key)[:100]}"
            raise ConfigError(f"unknown setting '{name}'{nearest(name)}")
        block = block_of(hints[key])
        if block is not None:
            _require_known(block, value, f"{where}{key}.")


def _block(tree: Tree, name: str) -> Tree:
    """Return a block of nested mappings by its dotted name, an empty one where there is none."""
    for key in name.split(".") if name else ():
        inner = tree.get(key)
        tree = inner if isinstance(inner, dict) else {}
    return tree


def plant(tree: Tree, name: str, value: Any) -> None:
    """Put a value into nested mappings by its dotted name, in place."""
    (*blocks, leaf) = name.split(".")
    for block in blocks:
        inner = tree.get(block)
        if inner is None:
            inner = tree[block] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"{block}: expected settings by name, got {shown(inner)}")
        tree = inner
    tree[leaf] = value


def drop_rivals(tree: Tree, name: str) -> None:
    """Drop, in place, the blocks that exclude the one that a setting is or stands in."""
    own = next((block for block in EXCLUSIVE_BLOCKS if f"{name}.".startswith(f"{block}.")), "")
    for block in EXCLUSIVE_BLOCKS:
        if block != own and block.split(".")[0] == own.split(".")[0]:
            plant(tree, block, None)


def _from_text(hint: Any, text: str) -> Any:
    """Read a flag's value: a list may be written `1,2,3` or `[1, 2, 3]`.

    Where either text or a list will do, only `[...]` is a list.
    """
    kinds = typing.get_args(hint) if _is_union(hint) else (hint,)
    origins = {typing.get_origin(kind) or kind for kind in map(_bare, kinds)}
    if not text.startswith("[") and text != "null":
        if not {str, Path}.isdisjoint(origins) or hint == tuple[Path, ...]:
            return text
        if tuple in origins:
            text = f"[{text}]"
    try:
        return _parsed(text, "")
    except ConfigError:
        return text


def _bare(hint: Any) -> Any:
    return typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (types.UnionType, typing.Union)


def _range_of(hint: Any) -> str:
    """Return the range of a type in words, with a space before it; empty where there is none."""
    meta = next(iter(getattr(hint, "__metadata__", ())), msgspec.Meta())
    words = [f">= {meta.ge}"] if meta.ge is not None else []
    if meta.ge is not None and meta.le is not None:
        words = [f"from {meta.ge} to {meta.le}"]
    words += [f"> {meta.gt}"] if meta.gt is not None else []
    words += [f"multiple of {meta.multiple_of}"] if meta.multiple_of is not None else []
    return " " + ", ".join(words) if words else ""


def _type_name(hint: Any) -> str:
    limits, hint = _range_of(hint), _bare(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " | ".join(str(a) for a in arguments)
    if _is_union(hint):
        return " or ".join("null" if a is type(None) else _type_name(a) for a in arguments)
    if origin is tuple:
        count = "list of" if arguments[-1] is Ellipsis else str(len(arguments))
        name, limits = _type_name(_bare(arguments[0])), _range_of(arguments[0])
        return f"{count} {name}{'' if name == 'text' else 's'}{limits}"
    names = {int: "integer", float: "number", bool: "true or false", str: "text"}
    return names.get(hint, getattr(hint, "__name__", str(hint)).lower()) + limits


def _with_tables(config: RunConfig, home: Path | None, named: Set[str]) -> RunConfig:
    """Look for the cohort's tables in the working directory, then in the data.

    Those that a file has named are looked for beside it before.
    """
    changed: Tree = {}
    for name in _TABLES:
        path: Path | None = getattr(config.ingest, name)
        if path is not None:
            folders = [home] if home and name in named else []
            places = [folder / path for folder in (*folders, Path(), *config.ingest.data)]
            changed[name] = next((place for place in places if place.exists()), path)
    ingest = msgspec.structs.replace(config.ingest, **changed)
    return msgspec.structs.replace(config, ingest=ingest)
