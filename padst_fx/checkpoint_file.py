"""The checkpoint file: safetensors with a header of plain JSON and a checksum."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from padst_fx.atomic_file import write_whole

FORMAT = "padst_fx"
VERSION = 1


class CheckpointError(ValueError):
    """A file that cannot be loaded, or that does not fit the model; the message says why."""


def write(path: Path, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a file that is there whole or not at all."""
    from safetensors.torch import save as serialize

    content = json.dumps({"version": VERSION, **header}, sort_keys=True, allow_nan=False)
    metadata = {FORMAT: content, "checksum": _checksum(content, tensors)}
    write_whole(path, serialize(tensors, metadata))


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and tensors of a file, after all checks that need no model."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file: {error}") from error
    if FORMAT not in metadata:
        raise CheckpointError(f"{path} was not written by padst_fx.save")
    if metadata.get("checksum") != _checksum(metadata[FORMAT], tensors):
        raise CheckpointError(f"{path} is damaged: its checksum does not match its content")
    try:
        header = json.loads(metadata[FORMAT])
        version = header["version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: its header is no header: {error}") from error
    if version != VERSION:
        raise CheckpointError(f"{path} has format version {version}; this package reads {VERSION}")
    return header, tensors


def _checksum(header: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
