import pytest
import torch
from pass_backend import PassBackend
from sparse_layers import sparse_layer
from torch import nn

from padst_fx.passes import build_joint_pipeline
from padst_fx.passes.fuse_gather import FuseGather

aten = torch.ops.aten
GATHERS = (aten.index.Tensor, aten.index_select.default)
OPS = ("shift", "gather_gemm", "scatter_gemm")
SCATTERS = (aten.index_put.default, aten.scatter_add.default, aten.index_add.default)


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def compile_with(function, *passes):
    torch._dynamo.reset()
    backend = PassBackend(joint_passes=passes)
    return torch.compile(function, backend=backend, fullgraph=True), backend


def wide(graph, targets):
    """Nodes that gather or scatter activations; index vectors have one dimension."""
    return [
        node for node in graph.nodes if node.target in targets and node.meta["val"].dim() > 1
    ]


def standing(backend):
    """Gathers and scatters of activations before the joint passes and after."""
    (pair,) = backend.joint_graphs
    return tuple(
        tuple(len(wide(graph, targets)) for targets in (GATHERS, SCATTERS))
        for graph in (pair.before, pair.after)
    )


def check(function, layers, x, *rest, passes=None):
    """Output and every gradient compiled as eager; returns the backend."""
    results = []
    compiled, backend = compile_with(function, *(passes or build_joint_pipeline()))
    for call in (function, compiled):
        mine = x.detach().clone().requires_grad_()
        for layer in layers:
            layer.zero_grad()
        y = call(mine, *rest)
        (y * torch.linspace(1, 2, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
        grads = [p.grad.clone() for layer in layers for p in layer.parameters()]
        results.append([y.detach(), mine.grad, *grads])
    for eager, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, eager, rtol=1e-11, atol=1e-11)
    return backend


@pytest.mark.parametrize("op", OPS)
def test_gather_and_scatter_by_a_known_permutation(op):
    layer, x = sparse_layer(op), random(2, 5, 16)
    backend = check(lambda x: layer(x.index_select(-1, layer.perm)), [layer], x)
    assert backend.counts == {"fuse_scatter": 1, "fuse_gather": 1}
    assert standing(backend) == ((1, 1), (0, 0))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("kind", ["permutation", "repeats"])
def test_an_index_that_may_be_no_permutation_stays(op, kind):
    layer, x = sparse_layer(op), random(6, 16)
    index = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    if kind == "repeats":
        index[:4] = 3
    backend = check(lambda x, index: layer(torch.relu(x)[..., index]), [layer], x, index)
    assert backend.counts == {"fuse_scatter": 0, "fuse_gather": 0}
    assert standing(backend) == ((1, 1), (1, 1))


class Siblings(nn.Module):
    def __init__(self, op):
        super().__init__()
        self.projections = nn.ModuleList(sparse_layer(op) for _ in range(3))

    def forward(self, x):
        gathered = x[..., self.projections[0].perm]
        q, k, v = (projection(gathered) for projection in self.projections)
        return q * torch.sigmoid(k) + v


@pytest.mark.parametrize("op", OPS)
def test_siblings_behind_one_gather(op):
    model = Siblings(op)
    backend = check(model, [model], random(2, 5, 16))
    assert backend.counts == {"fuse_scatter": 1, "fuse_gather": 1}
    assert standing(backend) == ((1, 1), (0, 0))


@torch.no_grad()
def test_inference():
    layer, x = sparse_layer("shift"), random(3, 16)
    compiled, backend = compile_with(lambda x: layer(x[:, layer.perm]), FuseGather())
    torch.testing.assert_close(compiled(x), layer(x[:, layer.perm]))
    assert backend.counts == {"fuse_gather": 1} and standing(backend) == ((1, 0), (0, 0))


def read_twice(layer, x):
    gathered = x[..., layer.perm]
    return layer(gathered) * gathered.sum()


KEPT = {
    "another reader": (random(6, 16), read_twice),
    "rows": (random(16, 16), lambda f, x: f(x[f.perm])),
    "fewer features": (random(6, 24), lambda f, x: f(x[..., f.perm])),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_is_no_gather_of_all_features_stays(name):
    x, function = KEPT[name]
    layer = sparse_layer("shift")
    backend = check(lambda x: function(layer, x), [layer], x)
    assert backend.counts == {"fuse_scatter": 0, "fuse_gather": 0}
    before, after = standing(backend)
    assert before == after


def test_a_scattered_gradient_that_is_also_used_elsewhere_stays():
    layer = sparse_layer("shift")
    backend = check(lambda x: layer(x[..., layer.perm] * 2), [layer], random(6, 16))
    assert backend.counts == {"fuse_scatter": 0, "fuse_gather": 0}


@pytest.mark.parametrize("op", OPS)
def test_compiled_by_inductor_a_training_step_is_that_of_eager(op):
    torch._dynamo.reset()
    layer = sparse_layer(op, bias=True, dtype=torch.float32)

    def model(x):
        return torch.tanh(layer(torch.sin(x).index_select(-1, layer.perm)))

    options = {"strict": True, "fuse_gather": True}
    compiled = torch.compile(model, backend="padst", fullgraph=True, options=options)
    results = []
    for call in (model, compiled):
        x = random(2, 5, 16).float().requires_grad_()
        y = call(x)
        weight = torch.linspace(1, 2, y.numel()).view_as(y)
        gradients = torch.autograd.grad((y * weight).sum(), [x, *layer.parameters()])
        results.append([y.detach(), *gradients])
    for eager, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, eager, rtol=1e-5, atol=1e-5)
