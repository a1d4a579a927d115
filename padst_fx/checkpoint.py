"""`save` and `load`: a sparsified model as one safetensors file with its structure."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from padst_fx.layers.attention import MultiheadAttention
from padst_fx.layers.dense import DenseForm
from padst_fx.layers.linear import SparseLinear
from padst_fx.structures import StructureError, structure_from_config
from padst_fx.surgery import swap_modules

FORMAT = "padst_fx"
VERSION = 1


class CheckpointError(ValueError):
    """A file that cannot be loaded, or that does not fit the model; the message says why."""


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the model's state and the structure of its sparse layers to `path`.

    The file is safetensors: parameters and buffers by their `state_dict` names, and metadata
    with the layers' structures, names of shared tensors and a checksum. It is written beside
    `path` and moved there when complete. Raises `ValueError` for a model without sparse layers.
    """
    from safetensors.torch import save as serialize

    layers = {
        name: _layer_config(module)
        for name, module in model.named_modules()
        if isinstance(module, SparseLinear)
    }
    if not layers:
        raise ValueError("nothing to save: the model has no SparseLinear; use torch.save")
    tensors, shared = _without_shared(model.state_dict())
    header = {
        "version": VERSION,
        "layers": layers,
        "attentions": [n for n, m in model.named_modules() if isinstance(m, MultiheadAttention)],
        "shared": shared,
    }
    metadata = {FORMAT: json.dumps(header, sort_keys=True)}
    metadata["checksum"] = _checksum(metadata[FORMAT], tensors)
    _write_atomically(Path(path), serialize(tensors, metadata))


def load(
    build_model: Callable[[], nn.Module] | nn.Module, path: str | os.PathLike[str]
) -> nn.Module:
    """Rebuild a model saved by `save`.

    `build_model` makes the model as it was before `sparsify` (or is such a model, or one
    sparsified alike). Loading executes no code of the file's. Raises `CheckpointError` with the
    reason for a damaged file, one of another kind or version, and one whose structure does not
    fit the model, which is then left as it was.
    """
    header, tensors = _read(Path(path))
    model = build_model if isinstance(build_model, nn.Module) else build_model()
    replacements = _replacements(model, header)
    expected = _expected_state(model, replacements)
    for alias, kept in header["shared"].items():
        tensors[alias] = tensors[kept]
    _check_state(expected, tensors)
    swap_modules(model, replacements)
    model.load_state_dict(tensors)
    return model


def _layer_config(layer: SparseLinear) -> dict[str, Any]:
    return {
        "structure": layer.pattern.structure.config(),
        "shape": [layer.out_features, layer.in_features],
        "active": layer.pattern.active,
        "permutation": layer.permutation,
        "role": layer.role,
        "alpha": layer.alpha is not None,
    }


def _without_shared(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor once, on the CPU, and which other names stand for which tensor."""
    kept: dict[tuple[Any, ...], str] = {}
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        if tensor.numel() and key in kept:
            shared[name] = kept[key]
        else:
            kept[key] = name
            tensors[name] = tensor.detach().cpu().contiguous().clone()
    return tensors, shared


def _checksum(header: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write_atomically(path: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
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


def _replacements(model: nn.Module, header: dict[str, Any]) -> dict[str, nn.Module]:
    """New modules for those of `model` that are not yet what the header says."""
    layers = header["layers"]
    for name, module in model.named_modules():
        if isinstance(module, SparseLinear) and name not in layers:
            raise CheckpointError(f"{name} is sparse in the model but dense in the checkpoint")
    replacements: dict[str, nn.Module] = {}
    for name in header["attentions"]:
        module = _module(model, name)
        if isinstance(module, nn.MultiheadAttention):
            replacements[name] = MultiheadAttention.from_dense(module)
        elif not isinstance(module, MultiheadAttention):
            raise CheckpointError(f"{name} is an attention in the checkpoint, not in the model")
    for name, config in layers.items():
        owner, _, child = name.rpartition(".")
        holder = replacements.get(owner)
        dense = holder.get_submodule(child) if holder is not None else _module(model, name)
        if isinstance(dense, SparseLinear):
            _check_same(name, _layer_config(dense), config)
            continue
        sparse = _build_layer(name, dense, config)
        if holder is not None:
            setattr(holder, child, sparse)
        else:
            replacements[name] = sparse
    return replacements


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise CheckpointError(f"the model has no module {name}, the checkpoint has") from None


def _check_same(name: str, present: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key in ("structure", "shape", "active", "permutation", "alpha"):
        if present[key] != wanted[key]:
            raise CheckpointError(
                f"{name} differs in {key}: the checkpoint has {wanted[key]}, "
                f"the model {present[key]}"
            )


def _build_layer(name: str, dense: nn.Module, config: dict[str, Any]) -> SparseLinear:
    try:
        weight = DenseForm.of(dense).weight(dense)
    except TypeError as error:
        raise CheckpointError(f"{name} is sparse in the checkpoint, but {error}") from error
    if list(weight.shape) != config["shape"]:
        raise CheckpointError(
            f"{name} is {config['shape']} in the checkpoint and {list(weight.shape)} in the model"
        )
    try:
        structure = structure_from_config(config["structure"])
        out_features, in_features = config["shape"]
        pattern = structure.pattern(out_features, in_features, config["active"])
    except StructureError as error:
        raise CheckpointError(f"{name}: {error}") from error
    layer = SparseLinear.from_dense(
        dense, pattern, permutation=config["permutation"], init="random"
    )
    layer.role = config["role"]
    if config["alpha"]:
        layer.enable_scores()
    return layer


def _expected_state(model: nn.Module, replacements: dict[str, nn.Module]) -> dict[str, Tensor]:
    """The state dict that the model will have once the replacements are in."""
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not any(name.startswith(f"{owner}.") for owner in replacements)
    }
    for owner, module in replacements.items():
        state.update({f"{owner}.{name}": t for name, t in module.state_dict().items()})
    return state


def _check_state(expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    missing = sorted(expected.keys() - found.keys())
    extra = sorted(found.keys() - expected.keys())
    if missing or extra:
        raise CheckpointError(
            f"the checkpoint does not fit the model: missing {missing[:5]}, unexpected {extra[:5]}"
        )
    for name, tensor in expected.items():
        other = found[name]
        if tensor.shape != other.shape or tensor.dtype != other.dtype:
            raise CheckpointError(
                f"{name} is {other.dtype} {tuple(other.shape)} in the checkpoint and "
                f"{tensor.dtype} {tuple(tensor.shape)} in the model"
            )
