"""What the header of a checkpoint must be like before any of it is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from padst_fx.checkpoint_file import CheckpointError
from padst_fx.saved_fields import check_fields

HEADER = {"layers": dict, "attentions": list, "shared": dict}
LAYER = {
    "structure": dict,
    "shape": list,
    "active": int,
    "permutation": str,
    "role": str,
    "alpha": bool,
    "soft": bool,
}


def check_header(header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Raise `CheckpointError` where a key is missing, of a wrong type, or names no tensor.

    A file with the right checksum was still not always written by `save`.
    """
    check_types("the header", header, HEADER)
    for name, config in header["layers"].items():
        check_types(f"the header's layer {name!r}", config, LAYER)
        if not all(type(size) is int for size in config["shape"]):
            raise CheckpointError(f"damaged: the shape of layer {name!r} is {config['shape']!r}")
    if not all(isinstance(name, str) for name in header["attentions"]):
        raise CheckpointError(f"damaged: attentions are {header['attentions']!r:.80}")
    for alias, kept in header["shared"].items():
        if not isinstance(kept, str) or kept not in tensors:
            raise CheckpointError(f"damaged: {alias} shares {kept!r}, which is not in the file")


def check_types(place: str, found: Any, wanted: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` unless `found` is a dict that has every field, of its type."""
    try:
        check_fields(f"damaged: {place}", found, wanted)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
