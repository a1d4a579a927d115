"""A frozen model is a module like any other; bad input is refused."""

from __future__ import annotations

import copy
import io

import model_zoo
import pytest
import torch
from torch import nn
from torch.export import Dim

import padst_fx
from padst_fx import NM, SparseLinear
from padst_fx.cost import CostModel
from padst_fx.freezing import FrozenModel


def mlp(structure=NM(1, 2), permutation="random"):  # noqa: B008
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24), nn.LayerNorm(24), nn.Linear(24, 32), nn.GELU(),
                          nn.Linear(32, 8)).eval()  # fmt: skip
    return padst_fx.sparsify(
        model, structure, 0.5, include=["2", "4"], permutation=permutation, init="magnitude"
    )


@pytest.fixture(scope="module")
def pair():
    model = mlp()
    return model, padst_fx.freeze(model, torch.randn(3, 16), skip_slower=False)


def test_it_is_for_inference(pair):
    _, frozen = pair
    assert isinstance(frozen, FrozenModel)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert not frozen.training
    assert frozen.train().training and not frozen.eval().training


def test_it_has_tensors_of_its_own(pair):
    model, frozen = pair
    own = {tensor.data_ptr() for tensor in model.state_dict().values() if tensor.numel()}
    held = {tensor.data_ptr() for tensor in frozen.state_dict().values() if tensor.numel()}
    assert not own & held


def test_it_holds_nothing_unused(pair):
    _, frozen = pair
    used = {f"program.{node.target}" for node in frozen.program.graph.find_nodes(op="get_attr")}
    assert set(frozen.state_dict()) == used


@pytest.mark.parametrize("backend", ["inductor", "padst"])
def test_it_compiles(pair, backend):
    model, frozen = pair
    torch.compiler.reset()
    x = torch.randn(3, 16)
    with torch.no_grad():
        compiled = torch.compile(frozen, backend=backend, fullgraph=True)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)


def test_it_exports_again(pair):
    model, frozen = pair
    x = torch.randn(3, 16)
    program = torch.export.export(frozen, (x,))
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-5, atol=1e-5)


def test_it_is_saved_whole_and_by_state(pair):
    _, frozen = pair
    x = torch.randn(3, 16)
    file = io.BytesIO()
    torch.save(frozen, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(x), frozen(x))
    assert str(loaded.report) == str(frozen.report)
    other = padst_fx.freeze(mlp(), x, skip_slower=False)
    for tensor in other.state_dict().values():
        tensor.zero_()
    other.load_state_dict(frozen.state_dict())
    assert torch.equal(other(x), frozen(x))
    assert torch.equal(copy.deepcopy(frozen)(x), frozen(x))


def test_freezing_twice_changes_nothing_more(pair):
    _, frozen = pair
    x = torch.randn(3, 16)
    again = padst_fx.freeze(frozen, x, skip_slower=False)
    assert torch.equal(again(x), frozen(x))
    assert not again.report.accounts


def test_dynamic_batch_and_sequence():
    model = mlp()
    shapes = ({0: Dim("batch"), 1: Dim("tokens")},)
    frozen = padst_fx.freeze(model, torch.randn(3, 5, 16), shapes, skip_slower=False)
    assert dict(frozen.report.counts) == {"folded": 2}
    for size in ((2, 7), (8, 3)):
        x = torch.randn(*size, 16)
        torch.testing.assert_close(frozen(x), model(x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_dynamic_transformer():
    entry = model_zoo.get("llama")
    model = padst_fx.sparsify(
        entry.build(), NM(1, 2), permutation="random", init="magnitude"
    )
    shapes = {"input_ids": {0: Dim("batch", min=2), 1: Dim("tokens", min=3, max=31)}}
    frozen = padst_fx.freeze(model, entry.inputs(), shapes, skip_slower=False)
    assert dict(frozen.report.counts) == {"folded": 3, "read through": 11}
    ids = torch.randint(model_zoo.VOCABULARY, (3, 9))
    torch.testing.assert_close(frozen(input_ids=ids).logits, model(ids).logits, rtol=1e-5,
                               atol=1e-5)  # fmt: skip


def test_dense_where_it_is_faster():
    """A diagonal layer of one weight in two is slower than dense at many tokens."""
    model = mlp("diag")
    x = torch.randn(4096, 16)
    frozen = padst_fx.freeze(model, x)
    costs = CostModel.of(torch.device("cpu"))
    slower = {
        name
        for name, layer in model.named_modules()
        if isinstance(layer, SparseLinear)
        and costs.compare(layer.pattern, 4096, torch.float32).gain < 1
    }
    assert slower
    assert {choice.name for choice in frozen.report.dense} == slower
    assert all(f"{name} is dense" in str(frozen.report) for name in slower)
    torch.testing.assert_close(frozen(x), model(x), rtol=1e-5, atol=1e-5)
    left = [n for n in frozen.program.graph.nodes if "padst" in str(n.target)]
    assert len(left) == 2 - len(slower)


def test_explain_says_what_freeze_does(pair, tmp_path):
    model, frozen = pair
    report = padst_fx.explain(model, torch.randn(3, 16), skip_slower=False)
    assert report == frozen.report
    text = str(report)
    for expected in ("2 permutations: 2 folded", "rows of 2", "1.weight", "gather_gemm"):
        assert expected in text
    path = report.draw(tmp_path / "graph.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    labels = [label for _, label, fate in report.picture.operators if fate]
    assert labels == ["2", "4"]


def test_explain_names_what_bars():
    model = nn.Sequential(nn.Flatten(), mlp("diag"))
    text = str(padst_fx.explain(model, torch.randn(3, 16), skip_slower=False))
    assert "writes its outputs in the order its structure is stored in" in text


@pytest.mark.parametrize("function", [padst_fx.freeze, padst_fx.explain])
def test_refused(function):
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got str"):
        function("model", torch.randn(3, 16))
    with pytest.raises(TypeError, match="example_inputs must be a tensor, a tuple"):
        function(mlp(), 3)
    with pytest.raises(ValueError, match="cannot export Sequential with these example_inputs"):
        function(mlp(), torch.randn(3, 17))


def test_a_dense_model_and_one_without_permutations():
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    x = torch.randn(2, 4)
    frozen = padst_fx.freeze(plain, x)
    assert torch.equal(frozen(x), plain(x))
    assert "0 permutations: none to do anything about" in str(frozen.report)
    assert not padst_fx.freeze(mlp(permutation="identity"), torch.randn(3, 16)).report.accounts


def test_a_soft_permutation_is_refused() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    padst_fx.sparsify(model, "diag", 0.75, include="2", permutation="soft")
    with pytest.raises(ValueError, match="permutation of 2 is soft still"):
        padst_fx.freeze(model, torch.randn(3, 16))
