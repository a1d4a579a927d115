"""What cannot be replaced is reported with the reason; what cannot be read raises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from padst_fx.projections import Projection, find_projections

X = torch.rand(2, 4)


class Around(nn.Module):
    """`inner` between two plain layers, behind an activation."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.fc1 = nn.Linear(4, 4)
        self.fc2 = inner
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x + self.fc2(F.relu(self.fc1(x))))


class OwnForward(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class LowRank(nn.Linear):
    """A LoRA layer: the base weight and two small ones beside it."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.low_a = nn.Parameter(torch.rand(2, in_features))
        self.low_b = nn.Parameter(torch.rand(out_features, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + F.linear(F.linear(x, self.low_a), self.low_b)


class Merged(nn.Linear):
    """A LoRA layer whose weights are added up before the product."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.low_a = nn.Parameter(torch.rand(2, in_features))
        self.low_b = nn.Parameter(torch.rand(out_features, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight + self.low_b @ self.low_a, self.bias)


def with_forward_replaced() -> nn.Linear:
    layer = nn.Linear(4, 4)
    layer.forward = lambda x: F.linear(x, layer.weight)  # type: ignore[method-assign]
    return layer


def with_old_weight_norm() -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(nn.Linear(4, 4))


def pruned() -> nn.Module:
    from torch.nn.utils import prune

    return prune.random_unstructured(nn.Linear(4, 4), "weight", amount=0.5)


def frozen_as_buffer() -> nn.Module:
    layer = nn.Linear(4, 4)
    weight = layer.weight.detach()
    del layer.weight
    layer.register_buffer("weight", weight)
    return layer


REASONS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "own forward": (lambda: OwnForward(4, 4), "its class OwnForward has its own forward"),
    "low rank": (lambda: LowRank(4, 4), "its class LowRank has its own forward"),
    "merged": (lambda: Merged(4, 4), "its class Merged has its own forward"),
    "instance": (with_forward_replaced, "its forward was replaced on the instance"),
    "parametrized": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        "it is parametrized (torch.nn.utils.parametrize) in weight",
    ),
    "spectral": (
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
        "it is parametrized (torch.nn.utils.parametrize) in weight",
    ),
    "weight_norm": (
        with_old_weight_norm,
        "its weight is not a parameter of its own, it is computed from weight_g, weight_v "
        "before each forward",
    ),
    "spectral_norm": (
        lambda: nn.utils.spectral_norm(nn.Linear(4, 4)),
        "its weight is not a parameter of its own, it is computed from weight_orig "
        "before each forward",
    ),
    "pruned": (
        pruned,
        "its weight is not a parameter of its own, it is computed from weight_orig "
        "before each forward",
    ),
    "buffer": (frozen_as_buffer, "its weight is not a parameter of its own"),
}


@pytest.mark.parametrize("case", REASONS)
def test_reason_from_the_module_alone(case: str) -> None:
    make, reason = REASONS[case]
    model = Around(make())
    expected = [
        Projection("fc1", "mlp_in", (4, 4), "fc1", "linear"),
        Projection("fc2", "mlp_out", (4, 4), "fc2", "linear", unsupported=reason),
        Projection("head", "head", (3, 4), "head", "linear"),
    ]
    assert find_projections(model) == expected
    assert find_projections(model, X) == expected


def test_lazy_module() -> None:
    model = nn.ModuleDict({"fc1": nn.LazyLinear(4)})
    reason = "it is lazy and not initialised: run the model once first"
    expected = [Projection("fc1", "mlp_in", (4, 0), "fc1", "linear", unsupported=reason)]
    assert find_projections(model) == expected
    model["fc1"](X)
    assert find_projections(model) == [Projection("fc1", "mlp_in", (4, 4), "fc1", "linear")]


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (torch.ones(4, 4, dtype=torch.int8), "its weight has dtype torch.int8"),
        (torch.eye(4).to_sparse(), "its weight has layout torch.sparse_coo"),
    ],
)
def test_weights_that_are_not_dense_floats(weight: torch.Tensor, reason: str) -> None:
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    (projection,) = find_projections(nn.ModuleDict({"fc1": layer}))
    assert projection.unsupported is not None
    assert projection.unsupported.startswith(reason)


def test_weights_of_a_tensor_subclass() -> None:
    class Packed(torch.Tensor):
        pass

    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.rand(4, 4).as_subclass(Packed))
    (projection,) = find_projections(nn.ModuleDict({"fc1": layer}))
    assert projection.unsupported == "its weight is a Packed, not a plain tensor"


def test_a_model_that_is_itself_a_projection() -> None:
    reason = "it is the model itself, so there is no parent module to replace it in"
    model = nn.Linear(4, 3)
    expected = [Projection("", "head", (3, 4), "", "linear", unsupported=reason)]
    assert find_projections(model) == expected
    assert find_projections(model, X) == expected
    names = [p.name for p in find_projections(nn.MultiheadAttention(4, 2))]
    assert names == ["q_proj", "k_proj", "v_proj", "out_proj"]


HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "forward pre-hook": lambda m: m.register_forward_pre_hook(lambda *_: None),
    "forward hook": lambda m: m.register_forward_hook(lambda *_: None),
    "backward pre-hook": lambda m: m.register_full_backward_pre_hook(lambda *_: None),
    "backward hook": lambda m: m.register_full_backward_hook(lambda *_: None),
    "state_dict pre-hook": lambda m: m.register_state_dict_pre_hook(lambda *_: None),
    "state_dict hook": lambda m: m.register_state_dict_post_hook(lambda *_: None),
    "load_state_dict pre-hook": lambda m: m.register_load_state_dict_pre_hook(lambda *_: None),
    "load_state_dict post-hook": lambda m: m.register_load_state_dict_post_hook(lambda *_: None),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_a_module_with_a_hook(kind: str) -> None:
    from transformers.pytorch_utils import Conv1D

    model = nn.ModuleDict({"linear": nn.Linear(4, 4), "conv": Conv1D(4, 4)})
    model["attention"] = nn.MultiheadAttention(4, 2)
    for module in list(model.values()):
        handle = HOOKS[kind](module)
        unsupported = [p.name for p in find_projections(model) if p.unsupported is not None]
        assert len(unsupported) == (4 if module is model["attention"] else 1)
        reasons = {p.unsupported for p in find_projections(model)} - {None}
        assert reasons == {f"it has a {kind}, which would be lost"}
        handle.remove()
        assert all(p.unsupported is None for p in find_projections(model))


@pytest.mark.parametrize("kind", HOOKS)
def test_an_attention_whose_output_layer_has_a_hook(kind: str) -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2)})
    HOOKS[kind](model["attention"].out_proj)
    reasons = [p.unsupported for p in find_projections(model)]
    assert reasons == [f"its out_proj has a {kind}, which would be lost"] * 4


@pytest.mark.parametrize("tied", ["in_proj_weight", "in_proj_bias"])
def test_an_attention_with_tied_inputs_is_unsupported_as_a_whole(tied: str) -> None:
    one, two = nn.MultiheadAttention(4, 2), nn.MultiheadAttention(4, 2)
    setattr(two, tied, getattr(one, tied))
    model = nn.ModuleDict({"one": one, "two": two})
    reasons = [p.unsupported for p in find_projections(model)]
    end = "splitting it would untie them"
    assert (
        reasons
        == [f"the attention's {tied} is tied with two.{tied}, {end}"] * 4
        + [f"the attention's {tied} is tied with one.{tied}, {end}"] * 4
    )
    weight_ties = [p.tied_with for p in find_projections(model)][:4]
    expected = ["two.in_proj_weight"] * 3 if tied == "in_proj_weight" else [None] * 3
    assert weight_ties == [*expected, None]


def test_an_attention_with_keys_tied_to_its_values() -> None:
    attention = nn.MultiheadAttention(4, 2, kdim=6, vdim=6)
    attention.v_proj_weight = attention.k_proj_weight
    projections = find_projections(nn.ModuleDict({"attention": attention}))
    assert len({p.unsupported for p in projections}) == 1
    assert projections[0].unsupported is not None
    assert projections[0].unsupported.startswith("the attention's k_proj_weight is tied with")


def test_a_tied_output_weight_leaves_the_inputs_available() -> None:
    model = nn.ModuleDict({"layer": nn.Linear(4, 4), "attention": nn.MultiheadAttention(4, 2)})
    model["layer"].weight = model["attention"].out_proj.weight
    tied = {p.name: p.tied_with for p in find_projections(model)}
    assert tied == {
        "layer": "attention.out_proj.weight",
        "attention.q_proj": None,
        "attention.k_proj": None,
        "attention.v_proj": None,
        "attention.out_proj": "layer.weight",
    }
    assert all(p.unsupported is None for p in find_projections(model))


@pytest.mark.parametrize("first", [True, False])
def test_an_output_layer_that_another_module_holds(first: bool) -> None:
    attention = nn.MultiheadAttention(4, 2)
    items = {"attention": attention, "layer": attention.out_proj}
    model = nn.ModuleDict(dict(reversed(items.items())) if first else items)
    reasons = {p.name: p.unsupported for p in find_projections(model)}
    assert reasons == {
        "attention.q_proj": None,
        "attention.k_proj": None,
        "attention.v_proj": None,
        "attention.out_proj": "its module is also a child of the model itself (ModuleDict)",
    }


def test_attention_with_its_own_forward_or_another_output_layer() -> None:
    class Own(nn.MultiheadAttention):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    replaced = nn.MultiheadAttention(4, 2)
    replaced.out_proj = LowRank(4, 4)  # type: ignore[assignment]
    model = nn.ModuleDict({"own": Own(4, 2), "replaced": replaced})
    reasons = [p.unsupported for p in find_projections(model)]
    assert (
        reasons
        == ["its class Own has its own forward"] * 4
        + ["its out_proj cannot be replaced: its class LowRank has its own forward"] * 4
    )


class ReadsElsewhere(nn.Module):
    def __init__(self, read: Callable[[nn.Linear, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.reader = Reader(self.layer, read)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.reader(self.layer(x))


class Reader(nn.Module):
    """Reads a layer that it does not hold."""

    def __init__(
        self, layer: nn.Linear, read: Callable[[nn.Linear, torch.Tensor], torch.Tensor]
    ) -> None:
        super().__init__()
        self.outside = [layer]
        self.read = read

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.read(self.outside[0], x)


@pytest.mark.parametrize(
    "read",
    [
        lambda layer, x: F.linear(x, layer.weight),
        lambda layer, x: x @ layer.weight.T.contiguous(),
        lambda layer, x: torch.addmm(layer.bias, x, layer.weight[:, :4].mT),
        lambda layer, x: torch.einsum("bi,oi->bo", x, layer.weight),
        lambda layer, x: x * layer.weight.square().sum(),
        lambda layer, x: F.linear(x, 2 * layer.weight),
        lambda layer, x: F.linear(x, torch.cat(layer.weight.split(2))),
    ],
)
def test_a_weight_read_outside_its_module(read: Callable) -> None:
    model = ReadsElsewhere(read)
    reason = "its weight is read by reader (Reader), outside its own forward"
    (projection,) = find_projections(model, X)
    assert (projection.name, projection.unsupported) == ("layer", reason)


def test_calling_a_module_that_another_one_holds_is_not_reading_its_weight() -> None:
    model = ReadsElsewhere(lambda layer, x: layer(x))
    (projection,) = find_projections(model, X)
    assert projection.unsupported is None


def test_a_weight_read_by_the_model_itself() -> None:
    class Direct(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, self.layer.weight, self.layer.bias)

    (projection,) = find_projections(Direct(), X)
    assert projection.role == "head"
    assert projection.unsupported == (
        "its weight is read by the model itself (Direct), outside its own forward"
    )


def test_a_projection_the_inputs_never_reach() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.Linear(4, 4)
            self.spare = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, extra: torch.Tensor | None = None) -> torch.Tensor:
            return self.used(x) if extra is None else self.used(x) + self.spare(extra)

    model = Optional()
    reached, spare = find_projections(model, X)
    assert (reached.role, reached.unsupported) == ("head", None)
    assert (spare.role, spare.unsupported) == ("other", "the example inputs never reach it")
    assert [p.unsupported for p in find_projections(model, (X, X))] == [None, None]
    assert [p.unsupported for p in find_projections(model, {"x": X, "extra": X})] == [None, None]


class Bare(nn.Module):
    def __init__(self, read: Callable[[Bare, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.read = read
        self.inner = nn.Module()
        self.inner.table = nn.Parameter(torch.rand(6, 4))
        self.inner.experts = nn.Parameter(torch.rand(3, 6, 4))
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.read(self, self.layer(x))


@pytest.mark.parametrize(
    ("read", "name", "shape"),
    [
        (lambda m, x: F.linear(x, m.inner.table), "inner.table", (6, 4)),
        (lambda m, x: x @ m.inner.table.T, "inner.table", (6, 4)),
        (lambda m, x: m.inner.table @ x.T, "inner.table", (6, 4)),
        (lambda m, x: torch.einsum("bi,oi->ob", x, m.inner.table), "inner.table", (6, 4)),
        (lambda m, x: torch.einsum("bi,eoi->beo", x, m.inner.experts), "inner.experts", (18, 4)),
        (lambda m, x: F.linear(x, m.inner.experts[1]), "inner.experts", (6, 4)),
        (lambda m, x: x.expand(3, 2, 4).bmm(m.inner.experts.mT), "inner.experts", (6, 4)),
        (lambda m, x: F.linear(x, m.inner.table.softmax(-1)), "inner.table", (6, 4)),
    ],
)
def test_a_bare_parameter_in_a_matmul(read: Callable, name: str, shape: tuple[int, int]) -> None:
    reason = "it is a bare parameter, multiplied in the model itself (Bare)"
    bare, layer = find_projections(Bare(read), X)
    assert bare == Projection(name, "head", shape, "inner", "linear", unsupported=reason)
    assert (layer.name, layer.unsupported) == ("layer", None)


def test_parameters_that_are_only_added_or_looked_up_are_no_projections() -> None:
    model = Bare(lambda m, x: x + m.inner.table[:2] + m.inner.experts.sum())
    assert [p.name for p in find_projections(model, X)] == ["layer"]


def test_a_model_that_cannot_be_exported() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.sum() > 0:
                raise KeyError("the cause\nand more")
            return self.layer(x)

    with pytest.raises(ValueError, match="call without example_inputs") as raised:
        find_projections(Branching(), X)
    message = str(raised.value)
    assert message.startswith("cannot export Branching with these example_inputs (")
    assert "\n" not in message


def test_the_cause_of_a_failed_export_is_quoted() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"\(TypeError: .*forward\(\) .*nothing.*call without"):
        find_projections(model, {"input": X, "nothing": X})


def test_a_lazy_model_is_not_exported() -> None:
    model = nn.Sequential(nn.LazyLinear(4))
    with pytest.raises(ValueError, match=r"parameter 0\.weight is not initialised"):
        find_projections(model, X)
    assert model[0].has_uninitialized_params()


@pytest.mark.parametrize(("inputs", "named"), [([X], "list"), (3, "int"), ({0: X}, "got 0")])
def test_inputs_of_another_type(inputs: Any, named: str) -> None:
    with pytest.raises(TypeError, match=f"example_inputs must .*{named}"):
        find_projections(nn.Sequential(nn.Linear(4, 4)), inputs)


def test_a_model_of_another_type() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got function"):
        find_projections(lambda x: x)  # type: ignore[arg-type]


class Stateful(nn.Module):
    """Batch norm statistics, dropout and attention: what a careless trace would touch."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.BatchNorm1d(4)
        self.layer = nn.Linear(4, 4)
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
        with pytest.warns(FutureWarning):
            self.old_norm = nn.utils.weight_norm(nn.Linear(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.attention(x, x, x)[0].mean(1)
        x = x + self.old_norm(torch.relu(self.spectral(x)))
        return self.layer(F.dropout(self.norm(x), 0.5, self.training))


@pytest.mark.parametrize("fast_path", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_nothing_is_changed(fast_path: bool, fails: bool) -> None:
    model = Stateful().train()
    model.attention.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names = [sorted(vars(module)) for module in model.modules()]
    modes = [module.training for module in model.modules()]
    random_state = torch.get_rng_state()
    inputs = (torch.rand(2, 3, 5 if fails else 4, generator=torch.Generator().manual_seed(0)),)
    previous = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fast_path)
    try:
        if fails:
            with pytest.raises(ValueError, match="cannot export Stateful"):
                find_projections(model, inputs)
        else:
            roles = [p.role for p in find_projections(model, inputs)]
            assert roles == ["q", "k", "v", "attn_out", "head", "mlp_in", "mlp_out"]
        assert torch.backends.mha.get_fastpath_enabled() is fast_path
    finally:
        torch.backends.mha.set_fastpath_enabled(previous)
    assert [module.training for module in model.modules()] == modes
    assert [sorted(vars(module)) for module in model.modules()] == names
    assert torch.equal(torch.get_rng_state(), random_state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())
    assert type(model.old_norm.weight) is torch.Tensor
    assert model(torch.rand(2, 3, 4)).shape == (2, 4)
