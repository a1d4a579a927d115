"""Options structure and sparsity: a dense model, sparsified once inside `torch.compile`."""

from __future__ import annotations

import copy
import gc
import logging
import weakref
from typing import Any

import model_zoo
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.fx import Graph

import padst_fx
from padst_fx import NM, Diag
from padst_fx.one_shot import Replacement, SparseWeight

EXACT = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def small_model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(16, 32),
        nn.GELU(),
        nn.Linear(32, 16, bias=False),
        nn.LayerNorm(16),
        nn.Linear(16, 4),
    ).double()


def compiled(
    model: Any, structure: Any = "diag", sparsity: float | None = 0.75, **more: Any
) -> Any:
    options = {"structure": structure, "inner": "aot_eager", **more}
    if sparsity is not None:
        options["sparsity"] = sparsity
    return torch.compile(model, backend="padst", options=options, fullgraph=True)


def sparsified(model: nn.Module, structure: Any = "diag", sparsity: float | None = 0.75) -> Any:
    """The reference: the same through `padst_fx.sparsify`."""
    return padst_fx.sparsify(copy.deepcopy(model), structure, sparsity, init="magnitude")


def tokens(*leading: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(*leading, 16, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
@pytest.mark.parametrize(
    "structure", ["diag", Diag(width=4), "block", "nm", "unstructured"], ids=str
)
@torch.no_grad()
def test_equal_to_sparsify(structure, inner):
    model, x = small_model(), tokens(3, 5)
    y = compiled(model, structure, inner=inner)(x)
    torch.testing.assert_close(y, sparsified(model, structure)(x), **EXACT)
    assert not torch.allclose(y, model(x))


@torch.no_grad()
def test_a_structure_that_fixes_the_sparsity_needs_none():
    model, x = small_model(), tokens(3)
    y = compiled(model, NM(2, 4), None)(x)
    torch.testing.assert_close(y, sparsified(model, "2:4", None)(x), **EXACT)


@torch.no_grad()
def test_through_inductor_with_a_fused_activation():
    model, x = small_model(), tokens(3)
    y = compiled(model, inner="inductor", strict=True, fuse_activation=True)(x)
    torch.testing.assert_close(y, sparsified(model)(x), **EXACT)


@pytest.mark.parametrize("name", ["vit", "gpt2", "llama", "bert_masked_lm"])
@torch.no_grad()
def test_real_models(name, caplog):
    """Conv1D as well as Linear; tied and untied heads, and keys that leave with a cache."""
    entry = model_zoo.get(name)
    model = entry.build()
    reference = sparsified(model)
    with caplog.at_level(logging.INFO, logger="padst_fx"):
        options = {"structure": "diag", "sparsity": 0.75, "inner": "aot_eager"}
        y = entry.run(torch.compile(model, backend="padst", options=options))
    torch.testing.assert_close(y, entry.run(reference), rtol=1e-5, atol=1e-5)
    layers = sum(isinstance(module, padst_fx.SparseLinear) for module in reference.modules())
    assert f"{layers} projections made sparse" in caplog.text


@torch.no_grad()
def test_any_number_of_tokens_in_one_graph():
    model = small_model()
    function = torch.compile(
        model, backend="padst", options={"structure": "diag", "sparsity": 0.75}, dynamic=True
    )
    reference = sparsified(model)
    for shape in ((2, 5), (3, 9)):
        torch.testing.assert_close(function(tokens(*shape)), reference(tokens(*shape)), **EXACT)
    assert counters["stats"]["unique_graphs"] == 1


def test_inference_mode_and_frozen_parameters():
    model, x = small_model(), tokens(3)
    expected = sparsified(model)(x).detach()
    with torch.inference_mode():
        torch.testing.assert_close(compiled(model)(x), expected, **EXACT)
    model.requires_grad_(False)
    torch.testing.assert_close(compiled(model)(x), expected, **EXACT)


@torch.no_grad()
def test_weights_that_change_are_read_again():
    model, other, x = small_model(0), small_model(1), tokens(3)
    function = compiled(model)
    function(x)
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(function(x), sparsified(other)(x), **EXACT)


@torch.no_grad()
def test_two_models_that_share_a_graph_keep_their_own_weights():
    x, references = tokens(3), []
    models = [small_model(0), small_model(1)]
    functions = [compiled(model) for model in models]
    references = [sparsified(model)(x) for model in models]
    for _ in range(2):
        for function, reference in zip(functions, references, strict=True):
            torch.testing.assert_close(function(x), reference, **EXACT)
    assert counters["stats"]["unique_graphs"] == 1

    dead = weakref.ref(models[0][0].weight)
    del models[0], functions[0], function
    gc.collect()
    assert dead() is None


def test_a_weight_is_sparsified_once():
    pattern = Diag().bind(16, 16, 0.75)
    sparse = SparseWeight(Replacement(Graph().placeholder("weight"), (), pattern, False))
    one, other = torch.randn(16, 16), torch.randn(16, 16)
    made = sparse(one), sparse(other)
    assert made[0] is not made[1]
    assert sparse(one) is made[0]
    assert sparse(other) is made[1]
    one.add_(1)
    assert sparse(one) is not made[0]
    assert sparse(other) is made[1]


def test_training_is_refused_with_the_way_out():
    with pytest.raises(Exception, match=r"inference only.*torch\.no_grad\(\).*padst_fx\.sparsify"):
        compiled(small_model())(tokens(3))


class Ends(nn.Module):
    """Keys that leave for a cache and are read too, logits that leave reshaped, a last residual."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.key, self.value, self.logits, self.last = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        key = self.key(x).view(-1, 2, 8)
        x = x + (x.view(-1, 2, 8) @ key.transpose(1, 2) @ key).flatten(1) * self.value(x)
        return key, self.logits(x).view(-1, 4, 4).softmax(-1), x + self.last(x)


@torch.no_grad()
def test_a_head_is_what_leaves_unread(caplog):
    model, x = Ends().double(), tokens(3)
    with caplog.at_level(logging.INFO, logger="padst_fx"):
        outputs = compiled(model)(x)
    assert "logits stays dense: a head" in caplog.text
    assert "3 projections made sparse" in caplog.text
    reference = copy.deepcopy(model)
    for name in ("key", "value", "last"):
        dense = getattr(model, name)
        setattr(reference, name, padst_fx.SparseLinear.from_dense(dense, "diag", 0.75))
    torch.testing.assert_close(outputs, reference(x), **EXACT)


class Tied(nn.Module):
    """One weight in two modules, one computed in the graph, and one called twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        self.second.weight = self.first.weight
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))
        self.twice, self.head = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.normed(self.second(self.first(x).sin()).sin()).sin()
        return self.head(self.twice(self.twice(x).sin()).sin())


@torch.no_grad()
def test_what_stays_dense_is_logged_with_the_reason(caplog):
    model, x = Tied().double(), tokens(3)
    with caplog.at_level(logging.INFO, logger="padst_fx"):
        y = compiled(model)(x)
    for line in (
        "first stays dense: its weight is tied",
        "normed stays dense: its weight is computed in the graph",
        "head stays dense: a head",
        "1 projections made sparse",
    ):
        assert line in caplog.text
    reference = copy.deepcopy(model)
    reference.twice = padst_fx.SparseLinear.from_dense(model.twice, "diag", 0.75)
    torch.testing.assert_close(y, reference(x), **EXACT)


@torch.no_grad()
def test_dimensions_that_are_not_divided_stay_dense(caplog):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 30), nn.ReLU(), nn.Linear(30, 4)
    )
    with caplog.at_level(logging.INFO, logger="padst_fx"):
        y = compiled(model.double(), Diag(width=4))(tokens(3))
    assert "2 stays dense: Diag(width=4) does not divide out=30" in caplog.text
    torch.testing.assert_close(y, sparsified(model, Diag(width=4))(tokens(3)), **EXACT)


NOTHING = {
    "a head": (nn.Linear(16, 4), "every projection of this graph stays dense.*a head"),
    "no projection": (nn.LayerNorm(16), "this graph has no linear projection"),
    "attention in one call": (
        nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
        "several projections in one call.*padst_fx.sparsify can replace them",
    ),
}


@pytest.mark.parametrize("name", NOTHING)
@torch.no_grad()
def test_nothing_to_sparsify_is_an_error(name):
    model, message = NOTHING[name]
    with pytest.raises(Exception, match=message):
        compiled(copy.deepcopy(model).double().eval())(tokens(2, 3))
