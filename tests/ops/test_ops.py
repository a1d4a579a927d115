"""The ops as torch sees them: opcheck, gradcheck, autocast, dtypes, errors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import padst_fx
from padst_fx.kernels import activation as activations
from padst_fx.structures import NM, Block, Diag, Unstructured

PATTERNS = [
    Diag().bind(6, 10, 0.7),
    Diag().bind(10, 6, 0.7),
    Diag(width=2).bind(6, 10, 0.5),
    Diag(width=2).bind(10, 6, 0.5),
    Block(2).bind(6, 8, 0.5),
    NM(2, 4, tile=2).bind(6, 10, None),
]
FORWARD = {"shift", "gather_gemm", "scatter_gemm"}
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]


def operands(pattern, *, dtype=torch.float64, requires_grad=True, seed=0, device="cpu"):
    """x, values, index, perm, bias of a random layer, leading dimensions 2 x 3."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        tensor = torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)
        return tensor.requires_grad_(requires_grad)

    index = pattern.index_from_units(pattern.random_units(generator))
    perm = torch.randperm(pattern.in_features, generator=generator, dtype=torch.int32)
    return (
        draw(2, 3, pattern.in_features),
        draw(*pattern.values_shape),
        index.to(device),
        perm.to(device),
        draw(pattern.out_features),
    )


def record_calls(function):
    """The padst ops that a function calls, with their arguments."""
    from torch.utils._python_dispatch import TorchDispatchMode

    calls = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "padst":
                leaves = [a.detach() if isinstance(a, torch.Tensor) else a for a in args]
                calls.append((func, tuple(leaves)))
            return func(*args, **(kwargs or {}))

    with Recorder():
        function()
    return calls


def layer_calls(pattern, device):
    """Every op call of a forward and backward of a scoring step of one layer."""
    x, values, index, perm, bias = operands(pattern, device=device)
    probe = x.new_zeros(1).expand(pattern.probe_shape).requires_grad_()

    def step():
        y = pattern.linear(x, values, index, perm, bias)
        pattern.probe(y, x, index, perm, probe).sum().backward()

    return record_calls(step)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("pattern", [*PATTERNS, Unstructured().bind(6, 10, 0.5)], ids=str)
def test_opcheck_of_every_op_of_a_scoring_step(pattern, device):
    calls = layer_calls(pattern, device)
    names = {func._schema.name.removeprefix("padst::") for func, _ in calls}
    if pattern.kernel in FORWARD:
        gradients = {f"{pattern.kernel}_input_grad", f"{pattern.kernel}_weight_grad"}
        assert {pattern.kernel, *gradients} <= names
    assert any(name.endswith("_growth_score") for name in names)
    assert any(name.endswith("_probe") for name in names)
    for func, args in calls:
        torch.library.opcheck(func, args)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_opcheck_with_gradients_and_without_permutation_and_bias(pattern):
    x, values, index, perm, bias = operands(pattern)
    extent = {
        "shift": pattern.out_features,
        "scatter_gemm": pattern.out_features,
        "gather_gemm": getattr(pattern, "m", pattern.in_features),
    }[pattern.kernel]
    op = getattr(torch.ops.padst, pattern.kernel).default
    torch.library.opcheck(op, (x, values, index, perm, bias, extent, "gelu"))
    absent = torch.empty(0, dtype=torch.int32)
    torch.library.opcheck(op, (x, values, index, absent, x.detach().new_empty(0), extent, "none"))


@pytest.mark.parametrize("activation", activations.NAMES)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_gradcheck(pattern, activation):
    x, values, index, perm, bias = operands(pattern)

    def function(x, values, bias):
        return pattern.linear(x, values, index, perm, bias, activation)

    torch.autograd.gradcheck(function, (x, values, bias))


@pytest.mark.parametrize("activation", ["none", "relu", "gelu", "silu"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_double_backward(pattern, activation):
    x, values, index, perm, bias = operands(pattern)

    def function(x, values, bias):
        return pattern.linear(x, values, index, perm, bias, activation)

    torch.autograd.gradgradcheck(function, (x, values, bias))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_autocast_casts_like_linear(pattern, dtype):
    x, values, index, perm, bias = operands(pattern, dtype=torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        y = pattern.linear(x, values, index, perm, bias)
    assert y.dtype == dtype
    cast = [t.detach().to(dtype) for t in (x, values, bias)]
    expected = pattern.linear(cast[0], cast[1], index, perm, cast[2])
    assert torch.equal(y, expected)
    y.float().sum().backward()
    assert x.grad.dtype == values.grad.dtype == bias.grad.dtype == torch.float32


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_scoring_under_autocast_gives_float_scores(pattern):
    x, values, index, perm, bias = operands(pattern, dtype=torch.float32)
    probe = torch.zeros(1).expand(pattern.probe_shape).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = pattern.linear(x, values, index, perm, bias)
        y = pattern.probe(y, x, index, perm, probe)
    cotangent = torch.randn_like(y)
    y.backward(cotangent)
    assert probe.grad.dtype == torch.float32
    gradient = cotangent.double().flatten(0, 1).t() @ x.double().flatten(0, 1)[:, perm.long()]
    scores, ids = pattern.growth_candidates(probe.grad)
    norms = pattern.unit_norms_of_dense(gradient.detach()).gather(1, ids)
    valid = scores >= 0
    torch.testing.assert_close(scores[valid], norms[valid], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_dynamic_batch_keeps_one_graph(pattern):
    x, values, index, perm, bias = operands(pattern, requires_grad=False)
    torch._dynamo.reset()
    graphs = []

    def backend(gm, example_inputs):
        graphs.append(gm)
        return gm.forward

    compiled = torch.compile(pattern.linear, backend=backend, dynamic=True, fullgraph=True)
    for tokens in (17, 19, 23):
        rows = torch.randn(tokens, pattern.in_features, dtype=x.dtype)
        weight = pattern.dense(values, index)
        torch.testing.assert_close(
            compiled(rows, values, index, perm, bias),
            F.linear(rows[:, perm.long()], weight, bias),
        )
    assert len(graphs) == 1


def test_unknown_activation_lists_the_valid_ones():
    x, values, index, perm, bias = operands(PATTERNS[0])
    with pytest.raises(ValueError, match="none, relu, gelu, gelu_tanh, silu"):
        PATTERNS[0].linear(x, values, index, perm, bias, "swish")


def test_the_ops_are_there_after_importing_the_package():
    assert padst_fx.ops is not None
    assert hasattr(torch.ops.padst, "shift")
