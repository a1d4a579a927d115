"""The checkpoint file: safetensors with a header of plain JSON and a checksum."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMAT = "padst_fx"
VERSION = 1


class CheckpointError(ValueError):
    """A file that cannot be loaded, or that does not fit the model; the message says why."""


def write(path: Path, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write beside `path`, with the umask's permissions, and move there when complete."""
    from safetensors.torch import save as serialize

    metadata = {FORMAT: json.dumps({"version": VERSION, **header}, sort_keys=True)}
    metadata["checksum"] = _checksum(metadata[FORMAT], tensors)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(temporary, "xb") as file:
            file.write(serialize(tensors, metadata))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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
    header = json.loads(metadata[FORMAT])
    if header["version"] != VERSION:
        raise CheckpointError(
            f"{path} has format version {header['version']}; this package reads {VERSION}"
        )
    return header, tensors


def _checksum(header: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
