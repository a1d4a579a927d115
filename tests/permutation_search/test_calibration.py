import pytest
import torch
from torch import nn

import padst_fx
from padst_fx.initialization import magnitudes
from padst_fx.permutation import is_permutation
from padst_fx.permutation_search import input_norms
from padst_fx.projections import find_projections


def trained(*shapes):
    """Linear layers whose columns differ as those of trained ones do."""
    torch.manual_seed(0)
    layers = [nn.Linear(inputs, out) for inputs, out in shapes]
    with torch.no_grad():
        for layer in layers:
            layer.weight.mul_(torch.rand(1, layer.in_features) * 2)
    return layers


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_norms_and_choice_by_hand():
    """One layer, two batches: norms, weighted magnitudes and the diagonal that is kept."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    model[0].weight.data = torch.tensor([[3.0, 1.0], [1.0, 2.0]])
    batches = [torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 4.0], [0.0, 0.0]])]
    norms = input_norms(model, find_projections(model), batches)["0"]
    assert norms.tolist() == [1.0, 5.0]
    assert magnitudes(model[0].weight, norms).tolist() == [[3.0, 5.0], [1.0, 10.0]]
    # 3² + 10² = 109 on the main diagonal, 5² + 1² = 26 on the other; 135 in all.
    plan = padst_fx.plan(
        model, "diag", 0.5, permutation="learned", init="magnitude", include="0",
        calibration=batches,
    )  # fmt: skip
    assert plan.replaced[0].retained.identity == pytest.approx(109 / 135)
    assert plan.replaced[0].retained.permuted == pytest.approx(109 / 135)
    assert "80.74%" in str(plan)


@pytest.mark.parametrize("permutation", ["identity", "learned"])
def test_weights_count_with_the_norms_of_their_inputs(permutation):
    """N:M keeps the weight whose product with the norm is largest, and its own value."""
    model = nn.Sequential(nn.Linear(4, 1, bias=False))
    model[0].weight.data = torch.tensor([[4.0, 1.0, 3.0, 2.0]])
    x = torch.tensor([[1.0, 10.0, 1.0, 1.0]])
    options = {"permutation": permutation, "init": "magnitude", "include": "0"}
    padst_fx.sparsify(model, "1:4", calibration=x, **options)
    assert model[0].dense_weight().tolist() == [[0.0, 1.0, 0.0, 0.0]]


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.5, batch_first=True)
        self.norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.norm(self.encoder(x).mean(1)))


def test_attention_and_encoder_projections_are_reached_and_nothing_is_left_behind():
    torch.manual_seed(0)
    model = Attending().train()
    model.norm.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.randn(2, 5, 16)
    projections = find_projections(model)
    norms = input_norms(model, projections, x)
    assert list(norms) != [] and set(norms) == {p.name for p in projections}
    expected = x.reshape(-1, 16).double().norm(dim=0)
    for name in "qkv":
        torch.testing.assert_close(norms[f"encoder.self_attn.{name}_proj"], expected)
    assert hooks(model) == 0 and torch.backends.mha.get_fastpath_enabled()
    assert model.training and not model.norm.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_input_of_the_output_projection_of_attention():
    torch.manual_seed(0)
    model = nn.Sequential()
    model.attention = nn.MultiheadAttention(8, 2, batch_first=True)
    model.forward = lambda x: model.attention(x, x, x)[0]
    x = torch.randn(2, 5, 8)
    norms = input_norms(model, find_projections(model), x)["attention.out_proj"]
    out = model.attention.out_proj
    attended = (model(x) - out.bias) @ torch.linalg.inv(out.weight).t()
    expected = attended.detach().reshape(-1, 8).double().norm(dim=0)
    torch.testing.assert_close(norms, expected, rtol=1e-3, atol=1e-4)


def test_hooks_and_modes_come_back_when_the_model_raises():
    model = Attending().train()
    with pytest.raises(RuntimeError):
        padst_fx.sparsify(
            model, "diag", 0.5, init="magnitude", calibration=torch.randn(2, 5, 7)
        )
    assert hooks(model) == 0 and model.training and torch.backends.mha.get_fastpath_enabled()
    assert not any(isinstance(m, padst_fx.SparseLinear) for m in model.modules())


def bad_norms():
    return torch.full((2, 8), torch.inf)


@pytest.mark.parametrize(
    ("calibration", "error", "words"),
    [
        (lambda: [], ValueError, "no batch"),
        (lambda: 3, TypeError, "must be a batch"),
        (bad_norms, ValueError, "calibration gives 0 inputs that are not finite"),
    ],
)
def test_bad_calibrations(calibration, error, words):
    model = nn.Sequential(*trained((8, 8), (8, 8)))
    with pytest.raises(error, match=words):
        padst_fx.plan(model, "diag", 0.5, init="magnitude", calibration=calibration())


def test_a_projection_that_no_batch_reaches():
    model = nn.Sequential(*trained((8, 8), (8, 8)))
    model.unused = nn.Linear(8, 8)
    model.forward = lambda x: model[1](model[0](x))
    with pytest.raises(ValueError, match="never reaches unused"):
        padst_fx.plan(
            model, "diag", 0.5, init="magnitude", include=["0", "1", "unused"],
            calibration=torch.randn(2, 8),
        )  # fmt: skip


def test_fresh_weights_are_not_searched():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))

    def never(*args):
        raise AssertionError("the model was run")

    model.forward = never
    plan = padst_fx.plan(
        model, "diag", 0.9, permutation="learned", calibration=torch.randn(2, 256)
    )
    assert [entry.init for entry in plan.replaced] == ["random"]
    assert plan.replaced[0].retained is None and "kept" not in str(plan)
    assert plan.replaced[0].perm is None
    padst_fx.sparsify(model, "diag", 0.9, permutation="learned")
    assert not torch.equal(model[0].perm, torch.arange(256, dtype=torch.int32))


@pytest.mark.parametrize("structure", ["diag", padst_fx.Block(4), "2:4", padst_fx.Diag(width=4)])
def test_what_the_plan_says_is_kept_is_kept(structure):
    model = nn.Sequential(*trained((32, 32), (32, 64), (64, 32)))
    dense = {str(i): layer.weight.detach().clone() for i, layer in enumerate(model)}
    arguments = (structure, 0.5)
    options = {"permutation": "learned", "init": "magnitude"}
    plan = padst_fx.plan(model, *arguments, **options)
    padst_fx.sparsify(model, *arguments, **options)
    for entry in plan.replaced:
        name = entry.projection.name
        layer = model.get_submodule(name)
        effective = layer.dense_weight()
        assert is_permutation(layer.perm)
        assert torch.equal(effective, dense[name] * (effective != 0))
        share = effective.square().sum() / dense[name].square().sum()
        assert float(share) == pytest.approx(entry.retained.permuted, abs=1e-5)
        assert entry.retained.permuted > entry.retained.identity
