"""PassManager: order, counts, clean-up, strictness, cache keys and logs."""

from __future__ import annotations

import logging
import pickle
import shutil
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from pass_backend import compile_with
from sparse_layers import sparse_layer
from torch._inductor import config
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch.fx import Graph

from padst_fx.passes import (
    PASS_NAMES,
    PIPELINE,
    PassManager,
    build_joint_pipeline,
    build_pipeline,
    source_hash,
)
from padst_fx.passes.fuse_activation import FuseActivation
from padst_fx.passes.fuse_bias import FuseBias
from padst_fx.passes.fuse_scatter import FuseScatter
from padst_fx.passes.pass_manager import PassChain
from padst_fx.passes.pipeline import JOINT_PIPELINE

aten = torch.ops.aten


@dataclass(frozen=True)
class NegateTwice:
    """Replaces `neg` by `mul` with a number, leaving the old node unused."""

    factor: float = -1.0
    name: ClassVar[str] = "negate"

    def apply(self, graph: Graph) -> int:
        nodes = graph.find_nodes(op="call_function", target=aten.neg.default)
        for node in nodes:
            with graph.inserting_before(node):
                new = graph.call_function(aten.mul.Tensor, (node.args[0], self.factor))
            new.meta = dict(node.meta)
            node.replace_all_uses_with(new)
        return len(nodes)


@dataclass(frozen=True)
class BreakOrder:
    """Leaves a graph in which a node is used before it is computed."""

    name: ClassVar[str] = "break_order"

    def apply(self, graph: Graph) -> int:
        first = next(node for node in graph.nodes if node.op == "call_function")
        graph.find_nodes(op="output")[0].append(first)
        return 1


@dataclass(frozen=True)
class Watch:
    """Notes what it sees and changes nothing."""

    seen: list[list[object]]
    name: ClassVar[str] = "watch"

    def apply(self, graph: Graph) -> int:
        self.seen.append([node.target for node in graph.nodes if node.op == "call_function"])
        return 0


def relu_of(layer):
    return lambda x: F.relu(layer(x)) * 2


@torch.no_grad()
def test_passes_run_in_order_and_leave_no_dead_code():
    seen: list[list[object]] = []
    compiled, backend = compile_with(torch.neg, Watch(seen), NegateTwice(), Watch(seen))
    x = torch.randn(4)
    assert torch.equal(compiled(x), -x)
    assert seen == [[aten.neg.default], [aten.mul.Tensor]]
    assert backend.counts == {"watch": 0, "negate": 1}


@torch.no_grad()
def test_a_graph_in_the_wrong_order_is_an_error():
    compiled, _ = compile_with(lambda x: x.sin().cos(), BreakOrder())
    with pytest.raises(Exception, match="used before it has been defined"):
        compiled(torch.randn(4))


def test_one_report_per_graph():
    layer = sparse_layer("shift")
    compiled, backend = compile_with(relu_of(layer), *build_pipeline())
    compiled(torch.randn(3, 16, dtype=torch.float64)).sum().backward()
    reports = backend.manager.reports
    assert [report.kind for report in reports] == ["forward", "backward"]
    assert [report.counts["fuse_activation"] for report in reports] == [1, 0]
    assert all(set(report.milliseconds) == {"fuse_bias", "fuse_activation"} for report in reports)
    assert backend.manager.counts == {"fuse_activation": 1, "fuse_bias": 0}


def test_the_pipeline_is_the_list():
    assert [type(graph_pass) for graph_pass in build_pipeline()] == list(PIPELINE)
    assert [type(graph_pass) for graph_pass in build_joint_pipeline()] == list(JOINT_PIPELINE)
    assert [p.name for p in (*JOINT_PIPELINE, *PIPELINE)] == list(PASS_NAMES)
    assert build_pipeline(["fuse_bias"]) == (FuseActivation(),)
    assert build_joint_pipeline(["fuse_gather"]) == (FuseScatter(),)
    with pytest.raises(ValueError, match=r"fuse_bais.*valid: .*fuse_bias"):
        build_pipeline(["fuse_bais"])


def test_a_required_pass_must_match_in_the_forward_graph():
    layer, x = sparse_layer("shift"), torch.randn(3, 16, dtype=torch.float64)
    passes = build_pipeline()
    compiled, backend = compile_with(relu_of(layer), *passes, required=["fuse_activation"])
    compiled(x).sum().backward()
    assert len(backend.manager.reports) == 2

    compiled, _ = compile_with(relu_of(layer), *passes, required=["fuse_bias"])
    with pytest.raises(Exception, match=r"strict=True: fuse_bias matched nothing"):
        compiled(x)


def test_require_any_asks_for_one_match_of_all_passes():
    layer, x = sparse_layer("shift"), torch.randn(3, 16, dtype=torch.float64)
    compiled, _ = compile_with(relu_of(layer), *build_pipeline(), require_any=True)
    compiled(x)
    compiled, _ = compile_with(layer, *build_pipeline(), require_any=True)
    with pytest.raises(Exception, match="no pass matched anything"):
        compiled(x)


def test_a_required_pass_must_be_there():
    with pytest.raises(ValueError, match=r"\['fuse_bias'\] are not among"):
        PassManager([FuseActivation()], required=["fuse_bias"])


@torch.no_grad()
def test_inductors_switch_turns_a_pass_off():
    layer, x = sparse_layer("shift"), torch.randn(3, 16, dtype=torch.float64)
    compiled, backend = compile_with(relu_of(layer), *build_pipeline())
    with config.patch(disabled_passes="fuse_activation"):
        compiled(x)
    assert backend.counts["fuse_activation"] == 0


def test_the_key_is_that_of_the_configuration():
    key = PassManager(build_pipeline()).uuid()
    assert key == PassManager(build_pipeline()).uuid() == pickle.loads(pickle.dumps(key))
    others = [
        PassManager([FuseBias()]),
        PassManager([FuseActivation(), FuseBias()]),
        PassManager(build_pipeline(), required=["fuse_bias"]),
        PassManager(build_pipeline(), require_any=True),
        PassManager([NegateTwice()]),
        PassManager([NegateTwice(factor=-2.0)]),
    ]
    assert len({key, *(other.uuid() for other in others)}) == 7


def test_the_key_is_that_of_the_sources(tmp_path, monkeypatch):
    files = source_hash.source_files()
    names = {(file.parent.name, file.name) for file in files}
    assert {("padst_fx", "backend.py"), ("passes", "fuse_bias.py"), ("shift", "cpu.py")} <= names

    key = PassManager(build_pipeline()).uuid()
    copies = tuple(tmp_path / str(i) / file.name for i, file in enumerate(files))
    for file, copied in zip(files, copies, strict=True):
        copied.parent.mkdir()
        shutil.copy(file, copied)
    monkeypatch.setattr(source_hash, "source_files", lambda: copies)
    assert PassManager(build_pipeline()).uuid() == key

    source_hash.hash_files.cache_clear()
    copies[-1].write_text(copies[-1].read_text() + "\n")
    assert PassManager(build_pipeline()).uuid() != key


@torch.no_grad()
def test_the_log_has_the_summary_and_the_graphs(caplog):
    layer, x = sparse_layer("shift"), torch.randn(3, 16, dtype=torch.float64)
    compiled, _ = compile_with(relu_of(layer), *build_pipeline())
    with caplog.at_level(logging.DEBUG, logger="padst_fx"):
        compiled(x)
    assert "forward graph: fuse_bias 0" in caplog.text
    assert "fuse_activation 1" in caplog.text
    _, _, dumps = caplog.text.partition("padst_fx.1.fuse_activation.before")
    before, _, after = dumps.partition("padst_fx.1.fuse_activation.after")
    assert "aten.relu" in before
    assert "padst.shift" in after
    assert "aten.relu" not in after


class UserPass(CustomGraphPass):
    def __init__(self, key: str | None, calls: list[str]) -> None:
        self.key = key
        self.calls = calls

    def __call__(self, graph: Graph) -> None:
        self.calls.append(str(self.key))

    def uuid(self) -> str | None:
        return self.key


def test_a_chain_runs_all_and_caches_only_if_all_can():
    calls: list[str] = []
    first, second, unkeyed = (UserPass(key, calls) for key in ("a", "b", None))
    chain = PassChain([first, second])
    chain(Graph())
    assert calls == ["a", "b"]
    assert chain.uuid() == ("a", "b")
    assert PassChain([first, unkeyed]).uuid() is None
    assert PassChain([first, lambda graph: None]).uuid() is None
