"""What the header of a checkpoint must be like before any of it is used."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from padst_fx.checkpoint_file import CheckpointError

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


def check_types(place: str, found: Any, wanted: dict[str, type]) -> None:
    """Raise `CheckpointError` unless `found` is a dict with values of the wanted types."""
    if not isinstance(found, dict):
        raise CheckpointError(f"damaged: {place} is {found!r:.80}")
    for key, kind in wanted.items():
        if not isinstance(found.get(key), kind) or (kind is int and found[key] is True):
            raise CheckpointError(
                f"damaged: {place} has {found.get(key)!r:.80} for {key!r}, not a {kind.__name__}"
            )
