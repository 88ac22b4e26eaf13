"""Records whose values are checked when they are made, by the types and ranges of their fields."""

from __future__ import annotations

import difflib
import math
import re
import reprlib
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import msgspec

from sacl.errors import ConfigError

Kind = TypeVar("Kind")


class Checked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A record of settings, valid once it is made, from a file or in Python."""

    block: ClassVar[str] = ""
    """Where the record stands among all settings: its dotted name, with the dot (`name_blocks`)."""

    def __post_init__(self) -> None:
        """Check every field against its declared type and range.

        Raises:
            ConfigError: naming the setting, what it got and expected.
        """
        for declared in msgspec.structs.fields(self):
            value = getattr(self, declared.name)
            converted = converted_value(value, declared.type, self.block + declared.name)
            msgspec.structs.force_setattr(self, declared.name, converted)


def require(condition: bool, message: str) -> None:
    """Raise a ConfigError with a message where a condition does not hold."""
    if not condition:
        raise ConfigError(message)


def require_one(settings: Checked, names: tuple[str, ...], default: Checked) -> None:
    """Allow one of several blocks; where none is given, the default takes the first's place."""
    given = [name for name in names if getattr(settings, name) is not None]
    require(
        len(given) <= 1,
        f"{settings.block}: {' and '.join(given)} exclude each other; give one of"
        f" {', '.join(names)}".replace(".:", ":"),
    )
    if not given:
        msgspec.structs.force_setattr(settings, names[0], default)


def block_of(hint: Any) -> type[Checked] | None:
    """Return the record that a field of this type holds, None where it holds a value."""
    kinds = (hint, *typing.get_args(hint))
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, Checked)), None)


def name_blocks(kind: type[Checked], where: str = "") -> None:
    """Give each record within a record its dotted name, by which errors call its fields."""
    kind.block = where
    for declared in msgspec.structs.fields(kind):
        if block := block_of(declared.type):
            name_blocks(block, f"{where}{declared.name}.")


def converted_value(value: Any, hint: type[Kind], name: str) -> Kind:
    """Return a value as a declared type: lists become tuples, text becomes paths."""
    try:
        converted = msgspec.convert(value, hint, dec_hook=_path_of)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$")
        place = place.rstrip("`").replace("[...]", "")
        part, declared = _at(value, hint, place)
        if missing := re.search(r"missing required field `(\w+)`", reason):
            raise ConfigError(f"{(name + place).strip('.')}: {missing[1]} is missing") from None
        raise ConfigError(
            f"{(name + place).strip('.')}: {_in_words(reason, declared)}, got {shown(part)}"
            + _nearest_choice(part, declared)
        ) from None
    for number in converted if isinstance(converted, tuple) else (converted,):
        if isinstance(number, float) and not math.isfinite(number):
            raise ConfigError(f"{name}: expected a finite number, got {number}")
    return converted


def paths_in(settings: Checked) -> Iterator[tuple[str, Path]]:
    """Yield the dotted names and values of all settings that are paths."""
    for name in settings.__struct_fields__:
        value = getattr(settings, name)
        if isinstance(value, Checked):
            yield from paths_in(value)
        for path in value if isinstance(value, tuple) else (value,):
            if isinstance(path, Path):
                yield settings.block + name, path


def as_list(value: Any) -> Any:
    """Return one path as a list of one, None as an empty list, and a list as it is."""
    if value is None:
        return ()
    return (value,) if isinstance(value, (str, Path)) else value


def shown(value: Any) -> str:
    """Return a value as an error message shows it: short, however large it is."""
    text = reprlib.repr(str(value) if isinstance(value, Path) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _path_of(kind: type, value: Any) -> Any:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError("Expected `path`")
    try:
        return Path(value).expanduser()
    except RuntimeError:
        raise ValueError("Expected `path` in the home of a known user") from None


def _at(value: Any, hint: Any, place: str) -> tuple[Any, Any]:
    """Return the part of a value that a place such as `.crop[2]` names, and its declared type."""
    for key, index in re.findall(r"\.([^.\[]+)|\[(\d+)\]", place):
        hint = _inner(hint, key)
        if key and isinstance(value, Mapping):
            value = value.get(key)
        elif index and isinstance(value, (list, tuple)):
            value = value[int(index)]
    return value, hint


def _inner(hint: Any, key: str) -> Any:
    """Return the declared type of a record's field, or of a list's items."""
    if not key:
        return next((k for k in typing.get_args(hint) if k is not Ellipsis), hint)
    record = block_of(hint)
    return typing.get_type_hints(record, include_extras=True).get(key) if record else None


def _choices(hint: Any) -> tuple[str, ...]:
    kinds = [hint, *typing.get_args(hint)]
    literal = next((k for k in kinds if typing.get_origin(k) is typing.Literal), None)
    return typing.get_args(literal)


def _nearest_choice(value: Any, hint: Any) -> str:
    if not isinstance(value, str):
        return ""
    close = difflib.get_close_matches(value[:80], _choices(hint), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _in_words(reason: str, hint: Any) -> str:
    """Return msgspec's reason in words that a user of YAML knows."""
    if reason.startswith("Invalid enum value"):
        return f"expected one of {', '.join(_choices(hint))}"
    reason = re.sub(r", got `?[^`]*`?$", "", reason).replace("`", "")
    for name, word in (
        (r"\bint\b", "integer"),
        (r"\bfloat\b", "number"),
        (r"\bbool\b", "true or false"),
        (r"\bstr\b", "text"),
        (r"\barray\b", "list"),
        (r"\bobject\b", "settings by name"),
        (r"(?<=>) (\d+)\.0\b", r" \1"),
        (r"(?<=>=) (\d+)\.0\b", r" \1"),
        (r"text matching regex .*", "another form of text"),
        (r" \| ", " or "),
    ):
        reason = re.sub(name, word, reason)
    return reason[:1].lower() + reason[1:]
