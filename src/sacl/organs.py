"""Organ names: one spelling for each organ, pairs of sides, and matching between schemes.

Names may be written in snake case, in camel case or as AAPM's TG-263 does (`Glnd_Submand_R`); the
spelling is TotalSegmentator's (lower snake case, the side last) for the organs listed here, but
for the heart's chambers, which are called as cardiac data sets do (`left_ventricle`); every other
name is only brought into that form.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

import yaml

BTCV_ORGANS = (
    *("spleen", "kidney_right", "kidney_left", "gallbladder", "esophagus", "liver", "stomach"),
    *("aorta", "inferior_vena_cava", "portal_vein_and_splenic_vein", "pancreas"),
    *("adrenal_gland_right", "adrenal_gland_left"),
)
"""The organs of the BTCV abdomen data; their label values are 1 to 13."""


def words_for(kind: str) -> dict[str, tuple[str, ...]]:
    """Return the words by what they stand for, of one kind of those in `words.yaml`."""
    text = files("sacl").joinpath("words.yaml").read_text(encoding="utf-8")
    return {name: tuple(words.split()) for name, words in yaml.safe_load(text)[kind].items()}


_CANONICAL = {alias: name for name, aliases in words_for("organs").items() for alias in aliases}
_SIDES = {side: name for name in ("left", "right") for side in (name, name[0], f"{name[0]}t")}
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
"""Where a word of camel case ends: `SpinalCord`, `LKidney`."""
_NOT_MIRRORED = {"ventricle", "atrium", "heart_ventricle", "heart_atrium"}
"""The heart's left and right chambers are different organs, not mirror images."""
_WORDS = {
    "autochthon": "deep back muscles",
    "clavicula": "clavicle",
    "iliac vena": "iliac vein",
    "vertebrae": "vertebra",
}
"""What people say for TotalSegmentator's words."""
_WHOLES = {"kidneys": "kidney", "lungs": "lung", "adrenal_glands": "adrenal_gland"}
"""Name of both sides together: the plural of the paired organ."""
_SAID = 13
_LOBES = {
    "lung_left": ("lung_upper_lobe_left", "lung_lower_lobe_left"),
    "lung_right": ("lung_upper_lobe_right", "lung_middle_lobe_right", "lung_lower_lobe_right"),
}
"""Organs that some schemes draw in parts."""


def snake_case(text: str) -> str:
    """Return a text in lower snake case: `End-diastole` becomes `end_diastole`."""
    return re.sub(r"[^a-z0-9]+", "_", text.strip().lower()).strip("_")


@functools.cache
def canonical_name(name: str) -> str:
    """Return the one spelling of an organ's name; both sides of a pair together are the plural.

    Example:
        >>> canonical_name("Right Kidney"), canonical_name("postcava"), canonical_name("kidney")
        ('kidney_right', 'inferior_vena_cava', 'kidneys')
        >>> canonical_name("RightParotid"), canonical_name("Glnd_Submand_R")
        ('parotid_right', 'submandibular_gland_right')
    """
    plain = snake_case(name)
    name = _CANONICAL.get(plain) or snake_case(_CAMEL.sub("_", name))
    name = _CANONICAL.get(name, name)
    base, side = _split_side(name)
    base = _CANONICAL.get(base, base)
    if side is None:
        return next((whole for whole, half in _WHOLES.items() if base in (whole, half)), base)
    if base in _NOT_MIRRORED:
        return name
    return f"{base}_{side}"


def readable(name: str) -> str:
    """Return an organ's name as people write it.

    Example:
        >>> readable("kidney_right"), readable("rib_left_1"), readable("iliac_vena_left")
        ('Right kidney', 'Left rib 1', 'Left iliac vein')
    """
    text = re.sub(r"^(.+)_(left|right)(?=_|$)", r"\2_\1", name).replace("_", " ")
    for word, spoken in _WORDS.items():
        text = re.sub(rf"\b{word}\b", spoken, text)
    return text[:1].upper() + text[1:]


def side_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs (left, right) of `names` that are one organ on both sides of the body.

    Example:
        >>> side_pairs(["spleen", "kidney_right", "left kidney"])
        [('left kidney', 'kidney_right')]
    """
    by_canonical = {canonical_name(name): name for name in names}
    pairs = []
    for left, name in by_canonical.items():
        # The side may stand within the name: TotalSegmentator has `rib_left_1`.
        right = re.sub(r"(^|_)left(?=_|$)", r"\1right", left)
        if right != left and right in by_canonical and _split_side(left)[0] not in _NOT_MIRRORED:
            pairs.append((name, by_canonical[right]))
    return pairs


def wholes(name: str) -> list[str]:
    """Return the organs that an organ is a part of, the nearest first, by canonical names.

    Example:
        >>> wholes("RK"), wholes("lung_lower_lobe_left"), wholes("liver")
        (['kidneys'], ['lung_lower_lobe', 'lung_left', 'lungs'], [])
    """
    canonical = canonical_name(name)
    base, side = _split_side(canonical)
    parents = [] if side is None or base in _NOT_MIRRORED else [canonical_name(base)]
    for whole, lobes in _LOBES.items():
        if canonical in lobes:
            parents += [whole, *wholes(whole)]
    return parents


def is_complete(organ: str, names: Collection[str]) -> bool:
    """Tell whether an organ is among canonical names, itself or with all of its parts.

    Example:
        >>> is_complete("kidneys", ["kidney_left"]), is_complete("lungs", ["lung_left", "lungs"])
        (False, True)
    """
    organ = canonical_name(organ)
    if organ in names:
        return True
    base, side = _split_side(_WHOLES.get(organ, organ))
    sides = () if side or base in _NOT_MIRRORED else (f"{base}_left", f"{base}_right")
    return any(
        all(is_complete(part, names) for part in parts)
        for parts in (_LOBES.get(organ, ()), sides)
        if parts
    )


def match(names: Sequence[str], wanted: Sequence[str]) -> dict[str, str]:
    """Return which of `wanted` each of `names` is, or is a part of; other names are left out.

    So a finer scheme is merged into a coarser one; the other way round there is nothing to be had.

    Example:
        >>> match(["RK", "LK", "postcava", "skin"], ["kidneys", "inferior_vena_cava"])
        {'RK': 'kidneys', 'LK': 'kidneys', 'postcava': 'inferior_vena_cava'}
    """
    by_canonical = {canonical_name(name): name for name in wanted}
    organ_of = {}
    for name in names:
        target = next((by_canonical[way] for way in _ways(name) if way in by_canonical), None)
        if target is not None:
            organ_of[name] = target
    return organ_of


@dataclass(frozen=True)
class SharedOrgans:
    """What several schemes have in common, each called by a name.

    `parts` has for every shared organ, by its canonical name, what each scheme calls it or its
    parts; `alone`, for each scheme, the names that are part of none, with a hint or an empty text.
    """

    parts: Mapping[str, Mapping[str, tuple[str, ...]]]
    alone: Mapping[str, Mapping[str, str]]

    def lines(self) -> Iterator[str]:
        """Yield it as a table, then what is left out."""
        rows = [["organ", *self.alone]]
        rows += [[o, *(" + ".join(names) for names in of.values())] for o, of in self.parts.items()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows if self.parts else ():
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            yield "  ".join(cells).rstrip()
        for scheme, names in self.alone.items():
            said = [f"{name} ({hint})" for name, hint in names.items() if hint]
            said += [name for name, hint in names.items() if not hint]
            more = f" and {len(said) - _SAID} more" if len(said) > _SAID else ""
            if names:
                yield f"left out of {scheme}: {', '.join(said[:_SAID])}{more}"


def shared_organs(schemes: Mapping[str, Sequence[str]]) -> SharedOrgans:
    """Return the finest organs that every scheme has, whole or in all of its parts.

    Example:
        >>> shared = shared_organs({"run": ["liver", "LK", "RK"], "data": ["kidneys", "livr"]})
        >>> for line in shared.lines():
        ...     print(line)
        organ    run      data
        kidneys  LK + RK  kidneys
        left out of run: liver (is it livr? use that name)
        left out of data: livr (is it liver? use that name)
    """
    known = [{canonical_name(name) for name in names} for names in schemes.values()]
    named = dict.fromkeys(canonical_name(name) for names in schemes.values() for name in names)
    shared = [organ for organ in named if all(is_complete(organ, names) for names in known)]
    coarser = {whole for organ in shared for whole in wholes(organ)}
    parts = {
        organ: {s: tuple(n for n in own if organ in _ways(n)) for s, own in schemes.items()}
        for organ in shared
        if organ not in coarser
    }
    left = {s: [n for n in own if not set(_ways(n)) & set(parts)] for s, own in schemes.items()}
    alone = {
        scheme: {name: _hint(name, scheme, schemes) for name in own} for scheme, own in left.items()
    }
    return SharedOrgans(parts, alone)


def _ways(name: str) -> tuple[str, ...]:
    """Return the organs that a name is, or is a part of, the nearest first."""
    return canonical_name(name), *wholes(name)


def _hint(name: str, of: str, schemes: Mapping[str, Sequence[str]]) -> str:
    """Return why a scheme's name has no match in all others, or which of their names it may be."""
    own, hint = canonical_name(name), ""
    mine = {canonical_name(other) for other in schemes[of]}
    for scheme, names in schemes.items():
        known = {canonical_name(other): other for other in names}
        parts = [other for other in names if own in _ways(other)]
        whole = next((way for way in wholes(name) if way in known), None)
        if not parts and not whole:
            side = _split_side(own)[1]
            free = [other for other in known if other not in mine and _split_side(other)[1] == side]
            close = difflib.get_close_matches(own, free, n=1)
            missing = f"{scheme} has none" if len(schemes) > 2 else ""
            return f"is it {known[close[0]]}? use that name" if close else missing
        if whole and scheme != of:
            hint = hint or f"{scheme} does not divide {known[whole]}"
        elif not is_complete(own, known):
            hint = f"{scheme} has only {' and '.join(parts)} of it"
    return hint


def _split_side(name: str) -> tuple[str, str | None]:
    """Return a snake-case name without its side, and the side if the name has one."""
    words = name.split("_")
    for position in (-1, 0):
        if len(words) > 1 and words[position] in _SIDES:
            rest = words[:-1] if position == -1 else words[1:]
            return "_".join(rest), _SIDES[words[position]]
    return name, None
