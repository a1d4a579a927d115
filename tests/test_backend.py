"""The backend "padst": how it is found, its options, its back halves, recompiles and caches."""

from __future__ import annotations

import copy
import logging
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._inductor import compile_fx, config, custom_graph_pass
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch._inductor.utils import fresh_cache
from torch.fx import Graph

from padst_fx import Block, Diag, SparseLinear
from padst_fx.backend import padst, read_options
from padst_fx.passes import PassManager, source_hash

PASS_KEY = "post_grad_custom_pre_pass"


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


class Mlp(nn.Module):
    """Two sparse layers with an activation between, and a residual."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(5)
        options: dict[str, Any] = {"permutation": "random", "dtype": dtype}
        self.up = SparseLinear(16, 32, Diag(), 0.75, **options)
        self.down = SparseLinear(32, 16, Block(size=4), 0.75, **options)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(x)))


def tokens(*leading: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(*leading, 16, dtype=dtype, generator=generator)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


# How it is found.


def test_the_entry_point_needs_no_import():
    code = """
import sys, torch
assert "padst" in torch._dynamo.list_backends()
assert not any(name.startswith("padst_fx") for name in sys.modules)
compiled = torch.compile(torch.sin, backend="padst", options={"inner": "eager"})
assert torch.equal(compiled(torch.ones(2)), torch.ones(2).sin())
assert "padst_fx.backend" in sys.modules
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_importing_the_backend_starts_no_inductor():
    code = """
import sys, padst_fx.backend
late = ("torch._inductor.compile_fx", "padst_fx.passes", "padst_fx.one_shot", "triton")
assert not [name for name in late if name in sys.modules]
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_torch_logs_shows_counts_and_graphs():
    code = """
import torch
from padst_fx import SparseLinear
layer = torch.nn.Sequential(SparseLinear(8, 8, "diag", 0.5), torch.nn.ReLU())
with torch.no_grad():
    torch.compile(layer, backend="padst", options={"inner": "aot_eager"})(torch.ones(2, 8))
"""
    done = run_python(code, TORCH_LOGS="+padst_fx")
    assert done.returncode == 0, done.stderr
    assert "fuse_activation 1" in done.stderr
    assert "padst_fx.1.fuse_activation.after" in done.stderr


# Options.


BAD = {
    "an unknown option": ({"fuse_bais": True}, r"unknown option 'fuse_bais'.*did you mean 'fuse_"),
    "the list of ours": ({"zzz": 1}, "inner, strict, fuse_scatter, fuse_gather, fuse_bias, fuse_a"),
    "an unknown inner": ({"inner": "inductro"}, "inductor, aot_eager, eager; got 'inductro'"),
    "no bool for strict": ({"strict": "yes"}, "strict must be True or False, got 'yes'"),
    "no bool for a pass": ({"fuse_bias": 1}, "fuse_bias must be True or False, got 1"),
    "a type Inductor refuses": ({"max_autotune": "yes"}, "max_autotune must be of type bool"),
    "an unknown structure": ({"structure": "diagonal", "sparsity": 0.5}, "unknown structure"),
    "a structure alone": ({"structure": "diag"}, "sparsity must be a number"),
    "a sparsity alone": ({"sparsity": 0.5}, "sparsity needs option structure"),
    "a sparsity of 1": ({"structure": "diag", "sparsity": 1.0}, r"\[0, 1\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options_are_refused_before_anything_else(name, monkeypatch):
    options, message = BAD[name]
    monkeypatch.setattr(compile_fx, "compile_fx", lambda *_, **__: pytest.fail("was compiled"))
    with pytest.raises((ValueError, TypeError), match=message):
        read_options(None, options)
    with pytest.raises(Exception, match=message):
        torch.compile(torch.sin, backend="padst", options=options)(torch.ones(2))


def test_an_unknown_mode_is_refused():
    with pytest.raises(Exception, match="max-speed"):
        torch.compile(torch.sin, backend="padst", mode="max-speed")(torch.ones(2))


@pytest.fixture
def patches(monkeypatch) -> dict[str, Any]:
    """What the backend asks of Inductor; the graph itself runs eagerly."""
    seen: dict[str, Any] = {}

    def fake_compile_fx(gm, example_inputs, config_patches):
        seen.update(config_patches)
        return gm.forward

    monkeypatch.setattr(compile_fx, "compile_fx", fake_compile_fx)
    return seen


def test_the_mode_is_inductors(patches):
    torch.compile(torch.sin, backend="padst", mode="max-autotune-no-cudagraphs")(torch.ones(2))
    assert patches["max_autotune"] is True
    assert patches["coordinate_descent_tuning"] is True
    assert isinstance(patches[PASS_KEY], PassManager)


def test_inductor_options_pass_through_and_ours_do_not(patches):
    options = {"max-autotune": True, "epilogue_fusion": False, "fuse_bias": False}
    torch.compile(torch.sin, backend="padst", options=options)(torch.ones(2))
    manager = patches.pop(PASS_KEY)
    assert patches.pop("joint_custom_pre_pass").manager is manager
    assert patches == {"max_autotune": True, "epilogue_fusion": False}
    assert [graph_pass.name for graph_pass in manager.passes] == ["fuse_activation"]


def sine_graph() -> torch.fx.GraphModule:
    return torch.fx.symbolic_trace(lambda x: torch.sin(x))


class UserPass(CustomGraphPass):
    """Notes that it ran."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Graph) -> None:
        self.graphs += 1

    def uuid(self) -> str:
        return "user pass"


def test_a_users_pass_stays_in_front_of_ours(patches):
    in_options, in_config = UserPass(), UserPass()
    padst(sine_graph(), [torch.ones(2)], options={PASS_KEY: in_options})
    assert patches[PASS_KEY][0] is in_options
    with config.patch({PASS_KEY: in_config}):
        padst(sine_graph(), [torch.ones(2)])
    assert patches[PASS_KEY][0] is in_config
    assert isinstance(patches[PASS_KEY][1], PassManager)


def test_where_inductor_takes_one_pass_the_two_become_one(patches, monkeypatch):
    monkeypatch.delattr(custom_graph_pass, "get_custom_graph_passes")
    user = UserPass()
    padst(sine_graph(), [torch.ones(2)], options={PASS_KEY: user})
    assert isinstance(patches[PASS_KEY], CustomGraphPass)
    gm = sine_graph()
    patches[PASS_KEY](gm.graph)
    assert user.graphs == 1
    assert patches[PASS_KEY].uuid()[0] == "user pass"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strict": True, "fuse_bias": True}, "fuse_bias matched nothing"),
        ({"strict": True, "fuse_bias": True, "fuse_activation": True}, "fuse_bias matched nothing"),
        ({"strict": True, "fuse_activation": False}, "no pass matched anything"),
        ({"strict": True, "fuse_activation": True}, None),
        ({"strict": True}, None),
        ({"fuse_bias": True}, None),
    ],
    ids=str,
)
@torch.no_grad()
def test_strict_asks_for_what_was_requested_by_name(options, message):
    model, x = Mlp(), tokens(3)
    compiled = torch.compile(model, backend="padst", options={"inner": "aot_eager", **options})
    if message is None:
        torch.testing.assert_close(compiled(x), model(x))
    else:
        with pytest.raises(Exception, match=message):
            compiled(x)


# Back halves.


def train(function: Any, model: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, input gradient and parameter gradients of one step."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    y = function(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return [y.detach(), x.grad, *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
def test_a_training_step_equals_eager(inner):
    model, x = Mlp(torch.float64), tokens(2, 5, dtype=torch.float64)
    compiled = torch.compile(model, backend="padst", options={"inner": inner}, fullgraph=True)
    check_step(compiled, model, x)


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
def test_inner_eager_leaves_the_graph_alone(inner, caplog):
    with caplog.at_level(logging.INFO, logger="padst_fx"), torch.no_grad():
        torch.compile(Mlp(), backend="padst", options={"inner": inner})(tokens(3))
    assert ("fuse_activation 1" in caplog.text) is (inner == "aot_eager")


def test_inductor_trains_as_eager_does_and_never_compiles_again():
    """One model through the default back half: two graphs, whatever is written into it."""
    model, x = Mlp(torch.float64), tokens(2, 5, dtype=torch.float64)
    before = config.get_config_copy()
    compiled = torch.compile(model, backend="padst", fullgraph=True)
    outputs = [check_step(compiled, model, x)]
    generator = torch.Generator().manual_seed(1)
    with torch.compiler.set_stance("fail_on_recompile"):
        for _ in range(3):
            rewrite_in_place(model, generator)
            outputs.append(check_step(compiled, model, x))
    assert len({output.sum().item() for output in outputs}) == 4
    assert config.get_config_copy() == before


def check_step(compiled: Any, model: nn.Module, x: Tensor) -> Tensor:
    """Compare a compiled training step with an eager one; returns the output."""
    ours = train(compiled, model, x)
    for one, other in zip(ours, train(model, model, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
    return ours[0]


@torch.no_grad()
def rewrite_in_place(model: Mlp, generator: torch.Generator) -> None:
    """New units, permutation and values in the storage the layers have."""
    for layer in (model.up, model.down):
        units = layer.pattern.random_units(generator)
        layer.index.copy_(layer.pattern.index_from_units(units))
        layer.perm.copy_(torch.randperm(layer.in_features, generator=generator))
        layer.values.copy_(torch.randn(layer.values.shape, generator=generator))
        layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator))


@torch.no_grad()
def test_one_dynamic_graph_for_any_number_of_tokens():
    model = Mlp(torch.float64)
    options = {"inner": "aot_eager", "strict": True, "fuse_activation": True}
    compiled = torch.compile(model, backend="padst", options=options, dynamic=True, fullgraph=True)
    for shape in ((2, 5), (3, 9), (4, 2)):
        x = tokens(*shape, dtype=torch.float64)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-12, atol=1e-12)
    assert counters["stats"]["unique_graphs"] == 1


@torch.no_grad()
def test_the_same_options_twice_compile_once():
    model, x = Mlp(), tokens(3)
    for _ in range(2):
        options = {"inner": "aot_eager", "fuse_bias": True}
        torch.compile(model, backend="padst", options=options)(x)
    assert counters["stats"]["unique_graphs"] == 1


# Caches.


@torch.no_grad()
def test_the_graph_cache_is_used_and_keyed_by_our_sources(caplog, monkeypatch, tmp_path):
    model, x = Mlp(), tokens(3)
    expected = model(x)

    def compile_anew() -> str:
        torch._dynamo.reset()
        counters.clear()
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="padst_fx"):
            y = torch.compile(copy.deepcopy(model), backend="padst")(x)
        torch.testing.assert_close(y, expected)
        assert counters["inductor"]["fxgraph_cache_bypass"] == 0
        assert counters["aot_autograd"]["autograd_cache_bypass"] == 0
        return caplog.text

    with fresh_cache():
        assert "fuse_activation 1" in compile_anew()
        assert "taken from the compile cache" in compile_anew()
        edited = tmp_path / "edited.py"
        edited.write_text("x = 1\n")
        files = (*source_hash.source_files(), edited)
        monkeypatch.setattr(source_hash, "source_files", lambda: files)
        assert "fuse_activation 1" in compile_anew()
