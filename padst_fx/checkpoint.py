"""`save` and `load`: a sparsified model as one safetensors file with its structure."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from padst_fx.checkpoint_file import CheckpointError, read, write
from padst_fx.checkpoint_header import check_header
from padst_fx.compiled import plain_name, uncompiled
from padst_fx.layers.attention import MultiheadAttention
from padst_fx.layers.dense import DenseForm
from padst_fx.layers.linear import SparseLinear
from padst_fx.sharding import is_sharded
from padst_fx.structures import structure_from_config
from padst_fx.surgery import swap_modules

__all__ = ["CheckpointError", "load", "save"]


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the model's state and the structure of its sparse layers to `path`.

    The file is safetensors: parameters and buffers by their `state_dict` names, without those of
    `torch.compile`'s wrapper, and metadata with the layers' structures, names of shared tensors
    and a checksum. It is written beside `path` and moved there when complete. Raises `ValueError`
    for a model without sparse layers, one on the meta device, one that is sharded over ranks, and
    one with state that is no tensor (`get_extra_state`).
    """
    header, tensors = content(model)
    write(Path(path), header, tensors)


def load(
    build_model: Callable[[], nn.Module] | nn.Module, path: str | os.PathLike[str]
) -> nn.Module:
    """Rebuild a model saved by `save` or `save_training`.

    `build_model` makes the model as it was before `sparsify` (or is such a model, or one
    sparsified alike). Returns that model, or the new module where the model itself is replaced
    by a `SparseLinear` or an attention. Loading executes no code of the file's. Raises
    `CheckpointError` with the reason for a damaged file, one of another kind or version, one
    whose structure does not fit the model, which is then left as it was, and a model on the meta
    device.
    """
    header, tensors = read(Path(path))
    given = build_model if isinstance(build_model, nn.Module) else build_model()
    fit = Fit.of(given, header, tensors)
    fit.load()
    return given if fit.model is uncompiled(given) else fit.model


def content(model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and tensors of a model's file; raises what `save` raises."""
    model = uncompiled(model)
    if name := next((n for n, p in model.named_parameters() if is_sharded(p)), None):
        raise ValueError(
            f"{name} is sharded, and a file holds whole tensors: use padst_fx.save_sharded, load "
            "that in one process, and save there"
        )
    modules = {plain_name(name): module for name, module in model.named_modules()}
    layers = {n: _layer_config(m) for n, m in modules.items() if isinstance(m, SparseLinear)}
    if not layers:
        raise ValueError("nothing to save: the model has no SparseLinear; use torch.save")
    if name := _on_meta(model):
        raise ValueError(f"nothing to save: {name} is on the meta device and has no values")
    tensors, shared = _without_shared(_tensors(model))
    header = {
        "layers": layers,
        "attentions": [n for n, m in modules.items() if isinstance(m, MultiheadAttention)],
        "shared": shared,
    }
    return header, tensors


@dataclass
class Fit:
    """A model and the content of a file that fits it: what loading it will change.

    `replacements` are new modules by the names of those they replace, `soft` the layers with soft
    permutations and whether they have a matrix in the file.
    """

    model: nn.Module
    replacements: dict[str, nn.Module]
    soft: dict[SparseLinear, bool]
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module, header: dict[str, Any], tensors: dict[str, Tensor]) -> Fit:
        """Check everything; changes nothing. Raises `CheckpointError` for what does not fit."""
        model = uncompiled(model)
        if name := _on_meta(model):
            raise CheckpointError(
                f"{name} of the model is on the meta device; call model.to_empty(device=...) first"
            )
        check_header(header, tensors)
        replacements = _replacements(model, header)
        # What belongs to no module starts with a dot.
        own = {name: tensor for name, tensor in tensors.items() if not name.startswith(".")}
        own.update({alias: tensors[kept] for alias, kept in header["shared"].items()})
        soft = _soft_layers(model, header)
        _check_state(_as_soft_as(_expected_state(model, replacements), model, soft), own)
        _check_topologies(model, replacements, own)
        return cls(model, replacements, soft, own)

    def load(self) -> None:
        """Swap modules and copy tensors; `model` is then the new module where it was replaced."""
        replacements = dict(self.replacements)
        if "" in replacements:
            self.model = replacements.pop("")
        swap_modules(self.model, replacements)
        for layer, soft in self.soft.items():
            layer.be_soft(soft)
        names = self.model.state_dict()
        self.model.load_state_dict({name: self.tensors[plain_name(name)] for name in names})


def _on_meta(model: nn.Module) -> str | None:
    """The name of a parameter or buffer on the meta device, if there is one."""
    named = chain(model.named_parameters(), model.named_buffers())
    return next((name for name, tensor in named if tensor.is_meta), None)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    state = {plain_name(name): value for name, value in model.state_dict().items()}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"cannot save {name}: it is a {type(value).__name__} (from get_extra_state), "
                "and the file holds tensors only"
            )
    return state


def _layer_config(layer: SparseLinear) -> dict[str, Any]:
    return {
        "structure": layer.pattern.structure.config(),
        "shape": [layer.out_features, layer.in_features],
        "active": layer.pattern.active,
        "permutation": layer.permutation,
        "role": layer.role,
        "alpha": layer.alpha is not None,
        "soft": layer.soft_perm is not None,
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


def _replacements(model: nn.Module, header: dict[str, Any]) -> dict[str, nn.Module]:
    """New modules for those of `model` that are not yet what the header says."""
    layers = header["layers"]
    for full_name, module in model.named_modules():
        name = plain_name(full_name)
        if isinstance(module, SparseLinear) and name not in layers:
            raise CheckpointError(
                f"{_called(name)} is sparse in the model but dense in the checkpoint"
            )
    replacements: dict[str, nn.Module] = {}
    for name in header["attentions"]:
        module = _module(model, name)
        if isinstance(module, nn.MultiheadAttention):
            replacements[name] = MultiheadAttention.from_dense(module)
        elif not isinstance(module, MultiheadAttention):
            called = _called(name)
            raise CheckpointError(f"{called} is an attention in the checkpoint, not in the model")
    for name, config in layers.items():
        owner, _, child = name.rpartition(".")
        holder = replacements.get(owner) if name else None
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


def _called(name: str) -> str:
    return name or "the model itself"


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        return uncompiled(model.get_submodule(name))
    except AttributeError:
        raise CheckpointError(f"the model has no module {name}, the checkpoint has") from None


def _check_same(name: str, present: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key in ("structure", "shape", "active", "permutation", "alpha"):
        if present[key] != wanted[key]:
            raise CheckpointError(
                f"{_called(name)} differs in {key}: the checkpoint has {wanted[key]}, "
                f"the model {present[key]}"
            )


def _build_layer(name: str, dense: nn.Module, config: dict[str, Any]) -> SparseLinear:
    try:
        weight = DenseForm.of(dense).weight(dense)
    except TypeError as error:
        called = _called(name)
        raise CheckpointError(f"{called} is sparse in the checkpoint, but {error}") from error
    if list(weight.shape) != config["shape"]:
        raise CheckpointError(
            f"{_called(name)} is {config['shape']} in the checkpoint and {list(weight.shape)} "
            "in the model"
        )
    try:
        structure = structure_from_config(config["structure"])
        out_features, in_features = config["shape"]
        pattern = structure.pattern(out_features, in_features, config["active"])
        layer = SparseLinear.from_dense(
            dense, pattern, permutation=config["permutation"], init="random"
        )
        if config["alpha"]:
            layer.enable_scores()
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{_called(name)}: {error}") from error
    layer.role = config["role"]
    if layer.permutation == "soft":
        layer.be_soft(config["soft"])
    return layer


def _expected_state(model: nn.Module, replacements: dict[str, nn.Module]) -> dict[str, Tensor]:
    """The state dict, by plain names, that the model will have once the replacements are in."""
    new = dict(_everywhere(model, replacements))
    state = {
        plain_name(name): tensor
        for name, tensor in model.state_dict().items()
        if not any(plain_name(name).startswith(prefix) for prefix in new)
    }
    for prefix, module in new.items():
        state.update({f"{prefix}{name}": t for name, t in module.state_dict().items()})
    return state


def _soft_layers(model: nn.Module, header: dict[str, Any]) -> dict[SparseLinear, bool]:
    """The model's layers with soft permutations: whether they have a matrix in the file."""
    return {
        module: header["layers"][plain_name(name)]["soft"]
        for name, module in model.named_modules()
        if isinstance(module, SparseLinear) and module.permutation == "soft"
    }


def _as_soft_as(
    expected: dict[str, Tensor], model: nn.Module, soft: dict[SparseLinear, bool]
) -> dict[str, Tensor]:
    """The state dict once the model's layers have a matrix where the file has one.

    Both are states of one model: a hardened layer may be loaded into a soft one and back.
    """
    state = dict(expected)
    for name, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, SparseLinear) or module not in soft:
            continue
        key = ".".join(filter(None, (plain_name(name), "soft_perm")))
        state.pop(key, None)
        if soft[module]:
            state[key] = module.values.new_empty(module.in_features, module.in_features)
    return state


def _everywhere(
    model: nn.Module, replacements: dict[str, nn.Module]
) -> Iterator[tuple[str, nn.Module]]:
    """Every replacement with the prefix of its tensors, under each name of the old module."""
    by_identity = {id(_module(model, name)): new for name, new in replacements.items()}
    for name, module in model.named_modules(remove_duplicate=False):
        if id(module) in by_identity:
            plain = plain_name(name)
            yield f"{plain}." if plain else "", by_identity[id(module)]


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


def _check_topologies(
    model: nn.Module, replacements: dict[str, nn.Module], tensors: dict[str, Tensor]
) -> None:
    roots = [("", model), *_everywhere(model, replacements)]
    for prefix, root in roots:
        for name, layer in root.named_modules():
            own = f"{prefix}{plain_name(name)}".rstrip(".")
            path = f"{own}." if own else ""
            if not isinstance(layer, SparseLinear) or f"{path}index" not in tensors:
                continue
            if fault := layer.topology_fault(tensors[f"{path}index"], tensors[f"{path}perm"]):
                raise CheckpointError(f"{own or 'the layer'} is damaged: {fault}")
