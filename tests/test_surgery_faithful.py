"""What sparsify and densify must not lose: ties, shared modules, flags, hooks, and whole models."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import padst_fx
from padst_fx import SparseLinear
from padst_fx.layers.attention import MultiheadAttention

WIDTH = 16
X = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))


class Attends(nn.Module):
    """Self-attention and a linear layer, with residuals."""

    def __init__(self, **settings) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(WIDTH, 4, batch_first=True, **settings)
        self.lin = nn.Linear(WIDTH, WIDTH)
        self.end = nn.Linear(WIDTH, 3)

    def forward(self, x):
        x = x + self.attn(x, x, x)[0]
        return self.end(x + self.lin(x).relu())


def attends(**settings):
    torch.manual_seed(0)
    return Attends(**settings)


def modules(model):
    return {name: module for name, module in model.named_modules(remove_duplicate=False)}


def test_an_output_weight_tied_with_a_linear_stays_tied():
    model = attends()
    model.lin.weight = model.attn.out_proj.weight
    tied = model.lin.weight
    padst_fx.sparsify(model, "diag", 0.9)
    assert isinstance(model.attn.q_proj, SparseLinear)
    assert model.lin.weight is model.attn.out_proj.weight is tied
    sparse = model(X)
    padst_fx.densify(model)
    assert type(model.attn) is nn.MultiheadAttention
    assert model.lin.weight is model.attn.out_proj.weight is tied
    torch.testing.assert_close(model(X), sparse, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["in_proj_weight", "in_proj_bias"])
def test_tied_inputs_of_an_attention_stay_tied(name):
    model = nn.ModuleDict({"one": attends(), "two": attends()})
    shared = getattr(model["one"].attn, name)
    setattr(model["two"].attn, name, shared)
    with pytest.raises(ValueError, match=f"asked for by name, but .*{name} is tied with"):
        padst_fx.sparsify(model, "diag", 0.9, include="one.attn.out_proj")
    padst_fx.sparsify(model, "diag", 0.9)
    assert isinstance(model["one"].lin, SparseLinear)
    for part in model.values():
        assert type(part.attn) is nn.MultiheadAttention
        assert getattr(part.attn, name) is shared


@pytest.mark.parametrize("registered_first", [True, False])
def test_an_output_layer_shared_with_another_module_stays_shared(registered_first):
    attention = nn.MultiheadAttention(WIDTH, 4)
    parts = [("attn", attention), ("proj", attention.out_proj)]
    model = nn.ModuleDict(dict(reversed(parts) if registered_first else parts))
    padst_fx.sparsify(model, "diag", 0.9)
    assert isinstance(model["attn"].v_proj, SparseLinear)
    assert model["proj"] is model["attn"].out_proj is attention.out_proj
    padst_fx.densify(model)
    assert model["proj"] is model["attn"].out_proj is attention.out_proj


@pytest.mark.parametrize("trainable", [True, False])
def test_tied_biases_stay_one_parameter(trainable):
    model = attends()
    bias = model.lin.bias
    model.attn.out_proj.bias = bias
    bias.requires_grad_(trainable)
    optimizer = torch.optim.SGD([bias, model.end.weight], 0.1)
    padst_fx.sparsify(model, "diag", 0.5)
    assert isinstance(model.lin, SparseLinear) and isinstance(model.attn.out_proj, SparseLinear)
    assert model.lin.bias is model.attn.out_proj.bias is bias
    assert bias.requires_grad is trainable
    before = bias.detach().clone()
    model(X).square().sum().backward()
    optimizer.step()
    assert torch.equal(bias, before) is not trainable
    sparse = model(X)
    padst_fx.densify(model)
    assert model.lin.bias is model.attn.out_proj.bias is bias
    assert bias.requires_grad is trainable
    torch.testing.assert_close(model(X), sparse, rtol=1e-4, atol=1e-5)


def test_the_bias_of_a_conv1d_lives_on():
    from transformers.pytorch_utils import Conv1D

    model = nn.ModuleDict({"one": Conv1D(8, 8), "two": Conv1D(8, 8), "last": nn.Linear(8, 2)})
    model["two"].bias = bias = model["one"].bias
    padst_fx.sparsify(model, "diag", 0.5)
    assert isinstance(model["one"], SparseLinear)
    assert model["one"].bias is model["two"].bias is bias
    padst_fx.densify(model)
    assert type(model["one"]) is Conv1D
    assert model["one"].bias is model["two"].bias is bias


def test_a_loaded_model_keeps_its_tied_biases(tmp_path):
    def build():
        model = attends()
        model.attn.out_proj.bias = model.lin.bias
        return model

    saved = padst_fx.sparsify(build(), "diag", 0.5)
    padst_fx.save(saved, tmp_path / "model.safetensors")
    loaded = padst_fx.load(build, tmp_path / "model.safetensors")
    assert loaded.lin.bias is loaded.attn.out_proj.bias
    torch.testing.assert_close(loaded(X), saved(X))


def test_densify_of_a_lone_layer_or_attention_keeps_the_bias():
    layer = SparseLinear(8, 8, "diag", 0.5)
    assert padst_fx.densify(layer).bias is layer.bias
    attention = MultiheadAttention.from_dense(nn.MultiheadAttention(WIDTH, 4))
    attention.out_proj = SparseLinear.from_dense(attention.out_proj, "diag", 0.5)
    dense = padst_fx.densify(attention)
    assert type(dense) is nn.MultiheadAttention
    assert dense.out_proj.bias is attention.out_proj.bias


@pytest.mark.parametrize("trained", ["weight", "bias"])
def test_flags_survive_there_and_back(trained):
    model = attends()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith(trained))
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    padst_fx.sparsify(model, "diag", 0.5)
    for name, layer in model.named_modules():
        if isinstance(layer, SparseLinear):
            assert layer.values.requires_grad is (trained == "weight"), name
            assert layer.bias.requires_grad is (trained == "bias"), name
    padst_fx.densify(model)
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags


@pytest.mark.parametrize("name", ["lin", "attn", "attn.out_proj"])
def test_a_module_with_a_hook_keeps_it(name):
    model = attends()
    seen = []
    hooked = model.get_submodule(name)
    hooked.register_forward_hook(lambda *_: seen.append(name))
    with pytest.raises(ValueError, match=r"asked for by name, but i.* has a forward hook"):
        padst_fx.sparsify(model, "diag", 0.5, include="lin" if name == "lin" else "attn.q_proj")
    padst_fx.sparsify(model, "diag", 0.5)
    assert model.get_submodule(name) is hooked
    model(X)
    assert seen == ([] if name == "attn.out_proj" else [name])


def test_densify_that_fails_changes_nothing():
    model = nn.ModuleDict({"a": attends(), "b": attends()})
    padst_fx.sparsify(model, "diag", 0.5)
    model["b"].attn.v_proj = nn.Sequential(model["b"].attn.v_proj)
    before, state = modules(model), copy.deepcopy(model.state_dict())
    message = r"cannot densify: b\.attn\.v_proj is a Sequential, not nn\.Linear"
    with pytest.raises(TypeError, match=message):
        padst_fx.densify(model)
    assert modules(model) == before
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_densify_draws_no_random_numbers():
    model = padst_fx.sparsify(attends(), "diag", 0.5)
    state = torch.get_rng_state()
    padst_fx.densify(model)
    assert torch.equal(torch.get_rng_state(), state)


class Repeats(nn.Module):
    """One block under two names, and its attention under a third."""

    def __init__(self) -> None:
        super().__init__()
        block = Attends()
        self.first, self.second = block, block
        self.attention = block.attn

    def forward(self, x):
        x = x + self.attention(x, x, x)[0]
        return self.second(x + self.first.attn(x, x, x)[0])


@pytest.mark.parametrize("example_inputs", [None, X])
def test_a_shared_attention_goes_there_and_back_as_one_module(example_inputs):
    torch.manual_seed(0)
    model = Repeats()
    names = {name: type(module) for name, module in modules(model).items()}
    plan = padst_fx.plan(model, "diag", 0.5, example_inputs=example_inputs)
    assert [e.projection.name for e in plan.replaced][:5] == [
        *(f"first.attn.{slot}_proj" for slot in ("q", "k", "v", "out")),
        "first.lin",
    ]
    padst_fx.sparsify(model, "diag", 0.5, example_inputs=example_inputs)
    assert isinstance(model.attention, MultiheadAttention)
    assert model.first.attn is model.second.attn is model.attention
    assert len([m for m in model.modules() if isinstance(m, SparseLinear)]) == len(plan.replaced)
    sparse = model(X)
    padst_fx.densify(model)
    assert {name: type(module) for name, module in modules(model).items()} == names
    assert model.first.attn is model.second.attn is model.attention
    torch.testing.assert_close(model(X), sparse, rtol=1e-4, atol=1e-5)


def test_albert():
    from transformers import AlbertConfig, AlbertModel

    torch.manual_seed(0)
    config = AlbertConfig(
        vocab_size=32,
        embedding_size=16,
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        num_hidden_layers=3,
    )
    model = AlbertModel(config).eval()
    classes = {name: type(module) for name, module in modules(model).items()}
    tokens = torch.arange(12).view(2, 6)
    padst_fx.sparsify(model, "diag", 0.5, permutation="random")
    layers = [module for module in model.modules() if isinstance(module, SparseLinear)]
    assert len(layers) >= 6
    sparse = model(tokens).last_hidden_state
    padst_fx.densify(model)
    assert {name: type(module) for name, module in modules(model).items()} == classes
    torch.testing.assert_close(model(tokens).last_hidden_state, sparse, rtol=1e-4, atol=1e-5)
