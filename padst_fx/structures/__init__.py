"""The structures: which masks are allowed, and what their units are."""

from __future__ import annotations

import re
from typing import Any

from padst_fx.structures.base import Pattern, Structure, StructureError
from padst_fx.structures.block import Block
from padst_fx.structures.diag import Diag
from padst_fx.structures.nm import NM
from padst_fx.structures.unstructured import Unstructured

STRUCTURES: dict[str, type[Structure]] = {
    structure.name: structure for structure in (Diag, Block, NM, Unstructured)
}
_RATIO = re.compile(r"(\d+):(\d+)")


def parse_structure(structure: str | Structure) -> Structure:
    """A `Structure` from itself, from its name, or from "n:m".

    Raises `StructureError` (a `ValueError`) that lists the valid names.
    """
    if isinstance(structure, Structure):
        return structure
    if isinstance(structure, str):
        if structure in STRUCTURES:
            return STRUCTURES[structure]()
        if ratio := _RATIO.fullmatch(structure):
            return NM(int(ratio[1]), int(ratio[2]))
    raise StructureError(
        f"unknown structure {structure!r}; valid: {', '.join(map(repr, STRUCTURES))}, "
        "'n:m' such as '2:4', or one of Diag(...), Block(...), NM(...), Unstructured()"
    )


def structure_from_config(config: dict[str, Any]) -> Structure:
    """The inverse of `Structure.config`."""
    parameters = dict(config)
    name = parameters.pop("name", None)
    if name not in STRUCTURES:
        raise StructureError(f"unknown structure {name!r}; valid: {', '.join(STRUCTURES)}")
    try:
        return STRUCTURES[name](**parameters)
    except TypeError as error:
        raise StructureError(f"bad parameters for structure {name!r}: {error}") from error


__all__ = [
    "NM",
    "STRUCTURES",
    "Block",
    "Diag",
    "Pattern",
    "Structure",
    "StructureError",
    "Unstructured",
    "parse_structure",
    "structure_from_config",
]
