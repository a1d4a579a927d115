"""`summary(tokens=...)` and `plan(skip_slower_at=...)`, with times that are made up."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import padst_fx
from padst_fx import Block, Diag, SparseLinear
from padst_fx.cost import CostModel
from padst_fx.cost.devices import Device
from padst_fx.cost.records import Record
from padst_fx.structures import Structure

DEVICE = Device("abacus", "portable", "portable", 1)
DIAG = Diag()


def model() -> nn.Sequential:
    """Two projections that become sparse and a head."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 80), nn.ReLU(), nn.Linear(80, 40), nn.Linear(40, 4))


def record(shape: tuple[int, int], tokens: int, time: float, structure: Structure | None) -> Record:
    """A made-up time in microseconds, of a dense layer or of a structure at 90 %."""
    out, inputs = shape
    nonzeros = structure.bind(out, inputs, 0.9).nonzeros if structure else out * inputs
    name = str(structure) if structure else "dense"
    fields = ("abacus", "portable", 1, "float32", name, out, inputs, nonzeros, tokens, time)
    return Record(*fields)


@pytest.fixture
def abacus(monkeypatch):
    """At 16 tokens diagonals gain 4 x on 80 x 40 and lose on 40 x 80; at 64 they gain on both."""
    up, down, head = (80, 40), (40, 80), (4, 40)
    costs = CostModel(
        DEVICE,
        [
            record(up, 16, 40.0, None), record(up, 16, 10.0, DIAG),
            record(down, 16, 30.0, None), record(down, 16, 60.5, DIAG),
            record(up, 64, 160.0, None), record(up, 64, 40.0, DIAG),
            record(down, 64, 120.0, None), record(down, 64, 60.0, DIAG),
            record(head, 16, 30.0, None), record(head, 64, 30.0, None),
        ],
    )  # fmt: skip
    monkeypatch.setattr(CostModel, "of", classmethod(lambda cls, device: costs))


def test_a_slower_layer_stays_dense_and_says_why(abacus):
    plan = padst_fx.plan(model(), "diag", 0.9, skip_slower_at=16)
    assert [entry.projection.name for entry in plan.replaced] == ["0"]
    reasons = {entry.projection.name: entry.reason for entry in plan.skipped}
    assert reasons["2"] == (
        "slower than dense at 16 tokens: 60.5 us (measured) against 30.0 us (measured)"
    )
    assert reasons["3"].startswith("a head")
    assert reasons["2"] in str(plan)


def test_as_many_tokens_as_it_takes_make_it_sparse(abacus):
    plan = padst_fx.plan(model(), "diag", 0.9, skip_slower_at=64)
    assert [entry.projection.name for entry in plan.replaced] == ["0", "2"]
    assert padst_fx.plan(model(), "diag", 0.9).entries == plan.entries


def test_sparsify_leaves_the_same_layers_dense(abacus):
    sparse = padst_fx.sparsify(model(), "diag", 0.9, skip_slower_at=16)
    kinds = [type(module) for module in sparse]
    assert kinds == [SparseLinear, nn.ReLU, nn.Linear, nn.Linear]


def test_a_layer_asked_for_by_name_stays_dense_too(abacus):
    plan = padst_fx.plan(model(), "diag", 0.9, include=["0", "2"], skip_slower_at=16)
    assert [entry.projection.name for entry in plan.replaced] == ["0"]


def test_a_plan_of_slower_layers_only_is_refused(abacus):
    with pytest.raises(ValueError, match=r"every projection stays dense \(0: slower than dense"):
        padst_fx.plan(nn.Sequential(*model()[2:]), "diag", 0.9, include="0", skip_slower_at=16)


def test_erk_spreads_its_budget_over_the_others(monkeypatch):
    """Without the slow layer the other one alone has to meet the sparsity asked for."""
    block = Block(8)
    slow = [record((40, 80), 16, 60.0, block), record((40, 80), 16, 1.0, None)]
    fast = [record((80, 40), 16, 1.0, block), record((80, 40), 16, 60.0, None)]
    costs = CostModel(DEVICE, [*slow, *fast])
    monkeypatch.setattr(CostModel, "of", classmethod(lambda cls, device: costs))
    both = padst_fx.plan(model(), block, 0.75, distribution="erk")
    assert len(both.replaced) == 2
    one = padst_fx.plan(model(), block, 0.75, distribution="erk", skip_slower_at=16)
    assert [entry.projection.name for entry in one.replaced] == ["0"]
    alone = padst_fx.plan(model(), block, 0.75, distribution="erk", exclude="2")
    assert [e.pattern for e in one.replaced] == [e.pattern for e in alone.replaced]


BAD = [0, -16, True, 2.0, "16"]


@pytest.mark.parametrize("value", BAD)
def test_bad_token_counts_are_refused_before_anything_else(value):
    for function in (padst_fx.plan, padst_fx.sparsify):
        with pytest.raises(ValueError, match="skip_slower_at must be a positive integer"):
            function(None, "no such structure", 7, skip_slower_at=value)
    with pytest.raises(ValueError, match="tokens must be a positive integer"):
        padst_fx.summary(nn.Linear(2, 2), tokens=value)


def test_the_summary_has_times_per_layer(abacus):
    table = padst_fx.summary(padst_fx.sparsify(model(), "diag", 0.9), tokens=16)
    times = [
        (round(1e6 * row.cost.dense.seconds, 6), round(1e6 * row.cost.sparse.seconds, 6))
        for row in table.rows
    ]
    assert times == [(40.0, 10.0), (30.0, 60.5)]
    assert [row.cost.source for row in table.rows] == ["measured", "measured"]
    text = str(table)
    assert "4.00" in text and "0.50 (dense is faster)" in text


def test_the_summary_adds_up_all_projections(abacus):
    prediction = padst_fx.summary(padst_fx.sparsify(model(), "diag", 0.9), tokens=16).prediction
    assert prediction.layers_gain == pytest.approx(70.0 / 70.5)
    assert prediction.remaining == 1
    assert prediction.gain == pytest.approx(100.0 / 100.5)
    assert str(prediction).splitlines() == [
        "one forward, 16 tokens, on abacus, 1 thread: sparse layers 70.5 us, dense ones in their "
        "place 70.0 us: 0.99x",
        "all projections, with those that stayed dense (1, 30.0 us): 1.00x",
        "predicted for projections, each at 16 tokens; the rest of the model is not in it",
    ]


def test_without_tokens_the_summary_has_no_times(monkeypatch):
    def refuse(cls, device):
        raise AssertionError("nothing asked for a cost")

    monkeypatch.setattr(CostModel, "of", classmethod(refuse))
    table = padst_fx.summary(padst_fx.sparsify(model(), "diag", 0.9))
    assert table.prediction is None and all(row.cost is None for row in table.rows)
    assert "gain" not in str(table)


def test_a_model_without_dense_projections_left(abacus):
    sparse = padst_fx.sparsify(nn.Sequential(*model()[:3]), "diag", 0.9, include=["0", "2"])
    prediction = padst_fx.summary(sparse, tokens=16).prediction
    assert prediction.remaining == 0
    assert prediction.gain == prediction.layers_gain
    assert "stayed dense" not in str(prediction)
