"""SparseLinear: a projection whose weight is structured-sparse behind a permutation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from padst_fx.initialization import magnitudes
from padst_fx.kernels.precision import accumulation_dtype
from padst_fx.layers.dense import DenseForm
from padst_fx.layers.stored_values import StoredValues
from padst_fx.permutation import (
    check_permutation,
    draw_permutation,
    is_permutation,
    permutation_length,
    permute_columns,
    unpermute_columns,
)
from padst_fx.sharding import is_sharded
from padst_fx.soft_permutation import near_identity_
from padst_fx.structures import Pattern, Structure, parse_structure
from padst_fx.structures.dense_gradient import DenseGradient
from padst_fx.structures.diag import DiagPattern

# Positions of a learned permutation that one scoring step looks at, unless DST is told otherwise.
DEFAULT_POSITIONS = 256


class SparseLinear(nn.Module):
    """`y = S (Pi x) + b`, a drop-in for `nn.Linear`; `y = S (M x) + b` while `Pi` is soft.

    Parameters: `values`, the active weights in the structure's own layout, `bias`
    `[out_features]` or None, and `soft_perm`, the matrix `M` `[in_features, in_features]` of a
    soft permutation until it is hardened, else None; it asks for no gradient until a
    `padst_fx.DST` trains it. Buffers: `index`, where the values lie, and `perm`, int32
    `[in_features]` or of length 0 for the identity. Shapes, dtypes and addresses never change;
    `padst_fx.DST` writes into them. The attribute `probe` is neither: a tensor that no forward
    reads, whose gradient in a scoring step (`ask_for_scores`) is the growth score.
    With a learned permutation `permutation_probe` does the same for the features that `positions`
    read (`ask_for_signal`); otherwise both are None. `scorer` says what the probe collects: by
    default the pattern's own growth scores.

    Input `[..., in_features]`, output `[..., out_features]`, both of the parameters' dtype (or
    autocast's). Raises `StructureError` for dimensions the structure does not divide,
    `ValueError` for an unknown structure or permutation or a sparsity outside [0, 1).
    """

    values: nn.Parameter
    bias: nn.Parameter | None
    alpha: nn.Parameter | None
    soft_perm: nn.Parameter | None
    index: Tensor
    perm: Tensor
    absent: Tensor
    probe: Tensor
    scoring: bool
    positions: Tensor | None
    permutation_probe: Tensor | None
    signalling: bool
    temperature: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        structure: str | Structure | Pattern,
        sparsity: float | None = None,
        bias: bool = True,
        permutation: str = "identity",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        pattern = bind(structure, out_features, in_features, sparsity)
        check_permutation(permutation)
        self.in_features = in_features
        self.out_features = out_features
        self.pattern: Pattern = pattern
        self.scorer: Pattern | DenseGradient = pattern
        self.permutation = permutation
        self.role = "other"
        self.dense_form = DenseForm(nn.Linear)
        self.values = nn.Parameter(torch.empty(pattern.values_shape, device=device, dtype=dtype))
        absent = torch.empty(0, device=device, dtype=dtype)
        self.register_parameter(
            "bias", nn.Parameter(absent.new_empty(out_features)) if bias else None
        )
        self.register_parameter("alpha", None)
        self.register_buffer("temperature", None)
        index = torch.empty(pattern.index_shape, dtype=pattern.index_dtype, device=device)
        self.register_buffer("index", index)
        length = permutation_length(permutation, in_features)
        self.register_buffer("perm", torch.empty(length, dtype=torch.int32, device=device))
        self.register_parameter("soft_perm", None)
        if permutation == "soft":
            self.soften()
        self.register_buffer("absent", absent, persistent=False)
        self.register_buffer("positions", None, persistent=False)
        if permutation == "learned":
            self.consider_positions(min(in_features, DEFAULT_POSITIONS))
        self.renew_probe()
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw units, permutation, values and bias anew.

        Values are uniform in `+-1 / sqrt(fan_in)`, `nn.Linear`'s rule with the number of
        weights a row really has; the bias likewise.
        """
        self._draw_topology(generator)
        if self.soft_perm is not None:
            near_identity_(self.soft_perm)
        if self.alpha is not None and self.temperature is not None:
            self._start_scores(self.alpha)
            self.temperature.fill_(1)
        bound = (self.out_features / self.pattern.nonzeros) ** 0.5
        self.values.uniform_(-bound, bound, generator=generator)
        if self.index.dtype == torch.bool:
            self.values.mul_(self.index)
        if self.bias is not None:
            self.bias.uniform_(-bound, bound, generator=generator)

    @torch.no_grad()
    def load_dense(self, weight: Tensor, norms: Tensor | None = None) -> None:
        """Keep the strongest units of a dense `[out, in]` weight, and their values.

        With `norms` `[in]` of the input features a weight counts as much as it times its
        feature's norm (Wanda, arXiv:2306.11695).
        """
        structured = unpermute_columns(weight, self.perm)
        size = unpermute_columns(magnitudes(weight, norms), self.perm)
        units = self.pattern.strongest_units(self.pattern.unit_norms_of_dense(size))
        self.index.copy_(self.pattern.index_from_units(units))
        self.values.copy_(self.pattern.values_from_dense(structured, self.index))

    @classmethod
    def from_dense(
        cls,
        linear: nn.Module,
        structure: str | Structure | Pattern,
        sparsity: float | None = None,
        permutation: str = "identity",
        init: str = "magnitude",
        perm: Tensor | None = None,
        norms: Tensor | None = None,
    ) -> SparseLinear:
        """A sparse layer in place of a dense one (`nn.Linear` or Hugging Face's `Conv1D`).

        `init="magnitude"` keeps the strongest units of the weight, `"random"` draws units and
        values afresh. `perm` `[in]` is what a "learned" permutation starts from; if not given, it
        is the identity with `init="magnitude"`, else a shuffle. `norms` are those of `load_dense`.
        The bias is kept either way, with device, dtype, training mode and `requires_grad`.
        """
        if init not in ("magnitude", "random"):
            raise ValueError(f"unknown init {init!r}; valid: 'magnitude', 'random'")
        form = DenseForm.of(linear)
        weight, bias = form.weight(linear), form.bias(linear)
        out_features, in_features = weight.shape
        layer = cls(
            in_features,
            out_features,
            structure,
            sparsity,
            bias=bias is not None,
            permutation=permutation,
            device=weight.device,
            dtype=weight.dtype,
        )
        layer.dense_form = form
        with torch.no_grad():
            if perm is None and (permutation, init) == ("learned", "magnitude"):
                perm = torch.arange(in_features, device="cpu")
            if perm is not None:
                layer.perm.copy_(perm)
            if init == "magnitude":
                layer.load_dense(weight, norms)
            if layer.bias is not None and bias is not None:
                layer.bias.copy_(bias)
                layer.bias.requires_grad_(bias.requires_grad)
        layer.values.requires_grad_(weight.requires_grad)
        return layer.train(linear.training)

    def enable_scores(self) -> nn.Parameter:
        """Give every candidate diagonal a trainable score (DynaDiag); returns the parameter.

        `alpha` `[candidates]` starts at 1 for active units and 0 for the others, `temperature`
        at 1. Raises `ValueError` for a structure other than `Diag`.
        """
        if not isinstance(self.pattern, DiagPattern):
            raise ValueError(f"scores need the structure Diag, got {self.pattern.structure}")
        if self.alpha is None:
            alpha = self._beside_values(self.pattern.candidates)
            self._start_scores(alpha)
            self.alpha = nn.Parameter(alpha)
            self.temperature = torch.ones((), dtype=alpha.dtype, device=alpha.device)
        return self.alpha

    def _beside_values(self, *shape: int) -> Tensor:
        """An uninitialized tensor; whole where the values are sharded, as `new_empty` is not."""
        return torch.empty(shape, dtype=self.values.dtype, device=self.values.device)

    def _start_scores(self, alpha: Tensor) -> None:
        alpha.zero_()[self.pattern.units_from_index(self.index)[0]] = 1

    @torch.no_grad()
    def soften(self) -> None:
        """Give a layer of the kind "soft" its matrix, near the identity, if it has none.

        Raises `ValueError` for another kind.
        """
        if self.permutation != "soft":
            raise ValueError(f"only a soft permutation has a matrix, got {self.permutation!r}")
        if self.soft_perm is None:
            matrix = self._beside_values(self.in_features, self.in_features)
            self.soft_perm = nn.Parameter(near_identity_(matrix), requires_grad=False)

    @torch.no_grad()
    def harden(self, perm: Tensor) -> None:
        """Read through the index `perm` from now on; the soft matrix goes.

        A compiled forward is compiled anew. Raises `ValueError`, with nothing changed, if `perm`
        is not a permutation of the inputs.
        """
        if len(perm) != len(self.perm) or not is_permutation(perm):
            raise ValueError(f"not a permutation of {self.in_features} inputs: {perm}")
        self.perm.copy_(perm)
        self.soft_perm = None

    def to_dense(self) -> nn.Module:
        """A dense module of the original class that computes the same."""
        dense = self.dense_form.build(self.dense_weight(), self.bias)
        for parameter in dense.parameters():
            parameter.requires_grad_(self.values.requires_grad)
        if (bias := self.dense_form.bias(dense)) is not None and self.bias is not None:
            bias.requires_grad_(self.bias.requires_grad)
        return dense.train(self.training)

    @torch.no_grad()
    def dense_weight(self) -> Tensor:
        """The effective weight `[out_features, in_features]`."""
        structured = self.pattern.dense(self.effective_values(), self.index)
        if self.soft_perm is not None:
            return structured @ self.soft_perm
        return permute_columns(structured, self.perm)

    def effective_values(self) -> Tensor:
        """The values as the forward uses them: scaled by DynaDiag's soft top-k if it is on."""
        return self.scaled(self.values)

    def scaled(self, values: Tensor) -> Tensor:
        """Values by DynaDiag's soft top-k, in their own dtype; the values themselves without it."""
        if self.alpha is None:
            return values
        assert isinstance(self.pattern, DiagPattern) and self.temperature is not None
        scale = soft_top_k(self.alpha, self.pattern.active, self.temperature)
        return self.pattern.scale_values(values, self.index, scale.to(values.dtype))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise ValueError(
                f"SparseLinear expects inputs of {self.in_features} features, "
                f"got shape {tuple(x.shape)}"
            )
        # `nn.Module` takes a microsecond to find a tensor by its attribute: parameters, which
        # wrappers may replace, are asked for once, buffers are taken from where they are.
        perm, index = self._buffers["perm"], self._buffers["index"]
        assert perm is not None and index is not None
        own_bias = self.bias
        bias = self.absent if own_bias is None else own_bias
        if self.permutation == "soft" and (matrix := self.soft_perm) is not None:
            x, perm = F.linear(x, matrix.to(x.dtype)), perm[:0]
        y = self.pattern.linear(x, self.effective_values(), index, perm, bias)
        if self.scoring:
            y = self.scorer.probe(y, x, index, perm, self.probe)
        if self.signalling:
            assert self.positions is not None and self.permutation_probe is not None
            y = torch.ops.padst.permutation_probe(
                y, x, self.perm, self.positions, self.permutation_probe
            )
        return y

    @property
    def weight(self) -> Tensor:
        """What the layer stores, for code that asks a layer's `weight` for dtype or device.

        It has the structure's layout; the dense matrix is `dense_weight()`, the parameter `values`.
        """
        if torch.compiler.is_exporting():
            return self.values  # a fake tensor cannot become a subclass
        return self.values.as_subclass(StoredValues)

    @property
    def sparsity(self) -> float:
        """The sparsity really had, after rounding to whole units."""
        return self.pattern.sparsity

    @property
    def permutation_state(self) -> str:
        """The kind of permutation, and of a soft one whether it is hard by now."""
        hardened = self.permutation == "soft" and self.soft_perm is None
        return "soft, hardened" if hardened else self.permutation

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As every module's; refuses what tensor parallelism would put in a parameter's place.

        `fully_shard` does not come this way, and loading into what it has sharded may. Raises
        `ValueError`.
        """
        if is_sharded(param) and not is_sharded(self._parameters.get(name)):
            raise ValueError(
                f"{name} of a SparseLinear cannot be distributed: tensor parallelism of sparse "
                "layers is not supported. Keep them out of the parallelize plan; fully_shard and "
                "DistributedDataParallel work"
            )
        super().register_parameter(name, param)

    def collect(self, scorer: Pattern | DenseGradient) -> None:
        """Let scoring steps collect what `scorer` says, with new probes."""
        self.scorer = scorer
        self.renew_probe()

    def renew_probe(self) -> None:
        """New probes, without hooks and not asking for scores."""
        self.scoring = self.signalling = False
        self.probe = self._empty_probe()
        self.permutation_probe = self._empty_permutation_probe()

    def ask_for_scores(self, asked: bool = True) -> Tensor:
        """Make the next forwards scoring ones, or plain ones again; returns the probe.

        A compiled forward follows the attribute `scoring`: torch 2.11 does not notice that a
        tensor which a graph does not read asks for a gradient.
        """
        self.scoring = asked
        return self.probe.requires_grad_(asked)

    def ask_for_signal(self, asked: bool = True) -> Tensor:
        """Like `ask_for_scores`, for what learns a permutation; returns the permutation's probe."""
        assert self.permutation_probe is not None
        self.signalling = asked
        return self.permutation_probe.requires_grad_(asked)

    def consider_positions(self, count: int) -> None:
        """Let scoring steps look at `count` positions of a learned permutation, the first ones.

        Another count than before is another shape: call it before the model is compiled.
        """
        self.positions = torch.arange(count, dtype=torch.int32, device=self.values.device)
        self.signalling = False
        self.permutation_probe = self._empty_permutation_probe()

    @staticmethod
    def _is_like(loaded: Any, own: Tensor) -> TypeGuard[Tensor]:
        """Whether a loaded buffer can be looked into: others are reported, or have no content."""
        return isinstance(loaded, Tensor) and loaded.shape == own.shape and not loaded.is_meta

    def _empty_probe(self) -> Tensor:
        return self._probe_of(*self.scorer.probe_shape)

    def _empty_permutation_probe(self) -> Tensor | None:
        if self.positions is None:
            return None
        count = len(self.positions)
        return self._probe_of(2 * self.out_features + count, count)

    def _probe_of(self, *shape: int) -> Tensor:
        """A shape of scores on one element of storage, beside the values."""
        dtype = accumulation_dtype(self.values.dtype)
        element = torch.zeros(1, dtype=dtype, device=self.values.device)
        return element.expand(shape)

    def _follow_values(self) -> None:
        """Put what is not in the state dict where the values are; the probe keeps its hooks."""
        self.absent = self.values.new_empty(0).detach()
        self.probe = _moved(self.probe, self._empty_probe())
        if self.permutation_probe is not None:
            fresh = self._empty_permutation_probe()
            assert fresh is not None
            self.permutation_probe = _moved(self.permutation_probe, fresh)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SparseLinear:
        before = self.index
        super()._apply(fn, recurse)
        self._follow_values()
        self._have_topology(before)
        return self

    @torch.no_grad()
    def _have_topology(self, before: Tensor) -> None:
        """Draw a topology where the buffers hold none, as after `to_empty`.

        Kernels read through index, permutation and positions without looking. `before` is the
        index before the move: where it is still the same, the longer look is spared.
        """
        index = self.index
        if type(index) is not Tensor or index.is_meta:
            return
        moved = not before.is_meta and torch.equal(before.to(index.device), index)
        if not (moved and is_permutation(self.perm)) and self.topology_fault(index, self.perm):
            self._draw_topology()
        if self.positions is not None and not _are_positions(self.positions, self.in_features):
            self.positions.copy_(torch.arange(len(self.positions), device="cpu"))

    def _draw_topology(self, generator: torch.Generator | None = None) -> None:
        self.index.copy_(self.pattern.index_from_units(self.pattern.random_units(generator)))
        self.perm.copy_(draw_permutation(self.permutation, self.in_features, generator))

    def be_soft(self, soft: bool) -> None:
        """Have a soft matrix or none, as a state about to be loaded has."""
        if soft:
            self.soften()
        else:
            self.soft_perm = None

    def topology_fault(self, index: Tensor, perm: Tensor) -> str | None:
        """What is wrong with an index and a permutation of this layer's shapes, if anything.

        Kernels read through both without looking: they must be right.
        """
        if not self.pattern.is_index(index):
            return f"index holds no units of {self.pattern.structure} in order"
        if not is_permutation(perm):
            return f"perm is not a permutation of {self.in_features} inputs"
        return None

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        index, perm = (state_dict.get(f"{prefix}{name}") for name in ("index", "perm"))
        fault = None
        if self._is_like(index, self.index) and self._is_like(perm, self.perm):
            fault = self.topology_fault(index, perm)
        if fault:
            raise ValueError(f"cannot load {prefix.rstrip('.') or 'the layer'}: {fault}")
        if self.permutation == "soft" and f"{prefix}perm" in state_dict:
            self.be_soft(f"{prefix}soft_perm" in state_dict)
        if f"{prefix}alpha" in state_dict and isinstance(self.pattern, DiagPattern):
            self.enable_scores()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if self.absent.device != self.values.device or self.absent.dtype != self.values.dtype:
            self._follow_values()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy starts with a probe of its own: the original's manager does not know it."""
        super().__setstate__(state)
        self.renew_probe()

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, {self.pattern.structure}, "
            f"sparsity={self.sparsity:.4f}, permutation={self.permutation_state}"
        )


def bind(
    structure: str | Structure | Pattern,
    out_features: int,
    in_features: int,
    sparsity: float | None,
) -> Pattern:
    """A structure on a shape; a pattern already bound is checked against it."""
    if not isinstance(structure, Pattern):
        return parse_structure(structure).bind(out_features, in_features, sparsity)
    shape = (structure.out_features, structure.in_features)
    if shape != (out_features, in_features):
        wanted = (out_features, in_features)
        raise ValueError(f"a pattern of shape {shape} does not fit a layer of shape {wanted}")
    return structure


def _are_positions(positions: Tensor, features: int) -> bool:
    """Whether an index names distinct features."""
    ordered = positions.sort().values
    exist = bool(((ordered >= 0) & (ordered < features)).all())
    return exist and bool((ordered[1:] > ordered[:-1]).all())


def _moved(probe: Tensor, fresh: Tensor) -> Tensor:
    """A probe with the storage of `fresh`, the same object with its hooks where torch lets it."""
    if not torch._has_compatible_shallow_copy_type(probe, fresh):
        return fresh
    probe.data = fresh
    return probe


def soft_top_k(alpha: Tensor, k: int, temperature: Tensor) -> Tensor:
    """DynaDiag's soft top-k, `min(k softmax(alpha / T), 1)` (arXiv:2506.11449, section 3)."""
    return (k * torch.softmax(alpha / temperature, dim=0)).clamp(max=1)
