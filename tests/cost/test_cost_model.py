"""The cost model against numbers worked out by hand, on a device that does not exist."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from padst_fx import NM, Block, Diag, Unstructured
from padst_fx.cost import SOURCES, Comparison, CostModel, Estimate, Work, check_tokens, devices
from padst_fx.cost.devices import Device
from padst_fx.cost.records import Record
from padst_fx.cost.roofline import calculated_seconds

DEVICE = Device("abacus", "portable", "portable", 2)
BLOCK = Block(16)
FLOAT = torch.float32


@pytest.fixture(autouse=True)
def rates(monkeypatch):
    """A core does 10 GFLOP/s and 5 GB/s, blocks half of that, and a call takes 2 us."""
    monkeypatch.setitem(devices.CPU_CORE, "portable", (10e9, 5e9))
    monkeypatch.setattr(devices, "CPU_CALL", 2e-6)
    monkeypatch.setattr(devices, "CPU_DENSE_CALL", 2e-6)
    monkeypatch.setitem(devices.CPU_SHARES, "tiles", 0.5)


def record(
    tokens: int, microseconds: float, out: int = 64, inputs: int = 64, **changed: object
) -> Record:
    """A dense record of the device, with other fields where given."""
    fields = {
        "device": "abacus",
        "kernels": "portable",
        "threads": 2,
        "dtype": "float32",
        "structure": "dense",
        "out_features": out,
        "in_features": inputs,
        "nonzeros": out * inputs,
        "tokens": tokens,
        "microseconds": microseconds,
    }
    return Record(**{**fields, **changed})


def dense_estimate(records: list[Record], tokens: int, out: int = 64, inputs: int = 64) -> Estimate:
    return CostModel(DEVICE, records).estimate(Work.dense(out, inputs), tokens, FLOAT)


def microseconds(estimate: Estimate) -> float:
    return estimate.seconds * 1e6


def test_many_tokens_cost_arithmetic_and_one_token_costs_memory():
    work = Work.dense(100, 200)
    # 2 x 20,000 x 10 operations at 20 GFLOP/s; 20,000 x 4 + 300 x 4 bytes at 10 GB/s.
    assert calculated_seconds(work, 10, FLOAT, DEVICE) == pytest.approx(2e-6 + 20e-6)
    assert calculated_seconds(work, 1, FLOAT, DEVICE) == pytest.approx(2e-6 + 8.12e-6)


def test_double_precision_is_half_as_fast_and_twice_as_large():
    work = Work.dense(100, 200)
    assert calculated_seconds(work, 10, torch.float64, DEVICE) == pytest.approx(42e-6)
    assert calculated_seconds(work, 1, torch.float64, DEVICE) == pytest.approx(18.24e-6)


@pytest.mark.parametrize(
    ("structure", "family", "nonzeros", "index_bytes"),
    [
        (Diag(), "diagonals", 10 * 64, 10 * 4),
        (Diag(width=16), "tiles", 1 * 4 * 256, 4 * 4),
        (Block(16), "tiles", 6 * 256, 6 * 4),
        (Block(4), "slots", 24 * 2 * 16, 24 * 2 * 4),
        (NM(1, 10), "slots", 96 * 7, 96 * 7),
        (NM(1, 10, tile=16), "tiles", 6 * 7 * 16, 6 * 7),
        (Unstructured(), "masked", 96 * 64, 96 * 64),
    ],
    ids=str,
)
def test_the_work_of_a_structure(structure, family, nonzeros, index_bytes):
    work = Work.of(structure.bind(96, 64, 0.9))
    assert (work.family, work.nonzeros, work.index_bytes) == (family, nonzeros, index_bytes)
    assert work.structure == str(structure)


def test_a_sparse_call_by_hand():
    work = Work.of(BLOCK.bind(160, 160, 0.9))
    assert (work.nonzeros, work.index_bytes) == (2560, 40)
    # 2 x 2,560 x 100 operations at half of 20 GFLOP/s; 2,560 x 4 + 40 + 320 x 4 bytes at 10 GB/s.
    assert calculated_seconds(work, 100, FLOAT, DEVICE) == pytest.approx(2e-6 + 51.2e-6)
    assert calculated_seconds(work, 1, FLOAT, DEVICE) == pytest.approx(2e-6 + 1.156e-6)


def test_a_measurement_is_taken_as_it_is():
    estimate = dense_estimate([record(16, 12.5), record(1, 50.0)], 16)
    assert (microseconds(estimate), estimate.source) == (pytest.approx(12.5), "measured")


def test_between_two_measurements_logarithms_are_straight():
    estimate = dense_estimate([record(100, 1000.0), record(1, 10.0)], 10)
    assert (microseconds(estimate), estimate.source) == (pytest.approx(100.0), "interpolated")


def test_beyond_the_measurements_calculated_times_say_how_much_more():
    # 2 us and 2 x 10,000 x M at 20 GFLOP/s: 102 us at 100 tokens, 202 us at 200.
    estimate = dense_estimate([record(100, 51.0, 100, 100)], 200, 100, 100)
    assert (microseconds(estimate), estimate.source) == (pytest.approx(101.0), "scaled")
    # 10,200 x 4 bytes at 10 GB/s: 2 + 4.08 us at one token.
    estimate = dense_estimate([record(100, 51.0, 100, 100)], 1, 100, 100)
    assert microseconds(estimate) == pytest.approx(51 * (2 + 4.08) / 102)


def test_another_shape_is_scaled_from_the_nearest_one():
    records = [record(100, 51.0, 100, 100), record(100, 1.0, 400, 400)]
    estimate = dense_estimate(records, 100, 200, 100)
    assert (microseconds(estimate), estimate.source) == (pytest.approx(51 * 202 / 102), "scaled")


@pytest.mark.parametrize("shape", [(401, 100), (100, 24), (24, 24)])
def test_a_shape_out_of_reach_is_calculated(shape):
    estimate = dense_estimate([record(100, 51.0, 100, 100)], 100, *shape)
    expected = calculated_seconds(Work.dense(*shape), 100, FLOAT, DEVICE)
    assert estimate == Estimate(expected, "calculated")


def test_a_density_out_of_reach_is_calculated():
    pattern = BLOCK.bind(160, 160, 0.9)
    sparse = record(16, 9.0, 160, 160, structure=str(BLOCK), nonzeros=pattern.nonzeros)
    model = CostModel(DEVICE, [sparse])
    sources = [
        model.estimate(Work.of(pattern.with_active(active)), 16, FLOAT).source
        for active in (1, 4, 5)
    ]
    assert sources == ["measured", "scaled", "calculated"]


@pytest.mark.parametrize(
    "changed",
    [
        {"device": "slide rule"},
        {"kernels": "torch"},
        {"threads": 1},
        {"dtype": "bfloat16"},
        {"structure": "Diag(width=1, run=1)"},
    ],
    ids=str,
)
def test_what_was_measured_otherwise_does_not_count(changed):
    assert dense_estimate([record(16, 12.5, **changed)], 16).source == "calculated"


def test_a_comparison_is_as_well_known_as_its_less_known_side():
    pattern = BLOCK.bind(64, 64, 0.5)
    records = [record(16, 30.0)]
    assert CostModel(DEVICE, records).compare(pattern, 16, FLOAT).source == "calculated"
    records += [record(16, 10.0, structure=str(BLOCK), nonzeros=pattern.nonzeros)]
    compared = CostModel(DEVICE, records).compare(pattern, 16, FLOAT)
    assert (compared.gain, compared.source) == (pytest.approx(3.0), "measured")
    for worse in SOURCES:
        assert Comparison(Estimate(1, "measured"), Estimate(1, worse)).source == worse


def test_a_device_without_measurements_gets_calculated_times():
    assert dense_estimate([], 16).source == "calculated"


curves = st.dictionaries(
    st.integers(1, 2000), st.floats(0.5, 1e5, allow_nan=False), min_size=0, max_size=5
)
sizes = st.integers(1, 40).map(lambda n: 16 * n)


@given(curves, sizes, sizes, st.integers(1, 4000), st.integers(1, 4000))
def test_more_tokens_never_cost_less(curve, out, inputs, some, others):
    """Whatever was measured, and wherever: only two measured times themselves may fall."""
    records = [record(tokens, time, 160, 160) for tokens, time in curve.items()]
    low, high = sorted((some, others))
    less, more = (dense_estimate(records, tokens, out, inputs) for tokens in (low, high))
    if "measured" not in (less.source, more.source):
        assert less.seconds <= more.seconds * (1 + 1e-9)


@given(sizes, sizes, st.integers(1, 4000), st.sampled_from([0.5, 0.8, 0.9]))
def test_calculated_times_grow_with_the_weights(out, inputs, tokens, sparsity):
    model = CostModel(DEVICE)
    few, many = (
        model.estimate(Work.of(BLOCK.bind(out, inputs, s)), tokens, FLOAT).seconds
        for s in (sparsity, sparsity / 2)
    )
    assert 0 < few <= many


@given(curves, st.integers(1, 3000))
def test_an_own_time_scales_with_the_machine(curve, tokens):
    """A machine half as fast everywhere has times twice as long, however they are known."""
    records = [record(at, time) for at, time in curve.items()]
    slower = [record(at, 2 * time) for at, time in curve.items()]
    if not records:
        return
    fast, slow = (dense_estimate(table, tokens) for table in (records, slower))
    assert slow.seconds == pytest.approx(2 * fast.seconds)
    assert slow.source == fast.source


@pytest.mark.parametrize("value", [0, -1, True, 1.5, 16.0, "16", None])
def test_tokens_are_a_positive_integer(value):
    with pytest.raises(ValueError, match=r"tokens must be a positive integer .* got "):
        check_tokens("tokens", value)


def test_plain_torch_kernels_cost_more():
    work = Work.of(Diag().bind(768, 768, 0.9))
    plain = Device("abacus", "portable", "torch", 2)
    assert calculated_seconds(work, 16, FLOAT, plain) > calculated_seconds(work, 16, FLOAT, DEVICE)
    dense = Work.dense(768, 768)
    assert calculated_seconds(dense, 16, FLOAT, plain) == calculated_seconds(
        dense, 16, FLOAT, DEVICE
    )


def test_the_present_machine_has_a_model(monkeypatch):
    monkeypatch.setattr(devices.load, "loaded", lambda: False)
    model = CostModel.of(torch.device("meta"))
    assert model.device.threads == torch.get_num_threads()
    assert (model.device.kernels, model.device.kind) == ("torch", devices.isa.widest())
    assert str(model.device).endswith("(plain torch kernels)")
    cost = model.compare(Diag().bind(32, 32, 0.5), 7, FLOAT)
    assert cost.source == "calculated" and cost.gain > 0


@pytest.mark.parametrize(("capability", "kind"), [((9, 0), "sm_90"), ((8, 9), "sm_80")])
def test_a_gpu_is_known_by_name_and_capability(monkeypatch, capability, kind):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Graphics")
    device = devices.device_of(torch.device("cuda"))
    assert device == Device("Graphics", kind, "triton", 0)
    half, single = (device.rates(dtype).matrix for dtype in (torch.bfloat16, FLOAT))
    assert half > single
    wide, narrow = (Work.of(Diag(width=w).bind(512, 512, 0.9)) for w in (64, 16))
    assert device.rates(torch.bfloat16).flops(wide) > device.rates(torch.bfloat16).flops(narrow)


def test_on_a_gpu_a_narrow_product_of_many_tokens_costs_a_dense_one_and_its_matrix():
    gpu = Device("Graphics", "sm_90", "triton", 0)
    narrow, wide = (Work.of(Diag(width=w).bind(4096, 4096, 0.9)) for w in (1, 64))
    half, dense = torch.bfloat16, Work.dense(4096, 4096)
    plain = calculated_seconds(dense, 4096, half, gpu)
    written = 2 * 4096 * 4096 * 2 / gpu.rates(half).bandwidth
    assert calculated_seconds(narrow, 4096, half, gpu) == pytest.approx(plain + written)
    assert calculated_seconds(wide, 4096, half, gpu) < plain
    assert calculated_seconds(narrow, 1, half, gpu) < calculated_seconds(dense, 1, half, gpu)
    in_float = (calculated_seconds(work, 4096, FLOAT, gpu) for work in (narrow, dense))
    assert next(in_float) < next(in_float)
