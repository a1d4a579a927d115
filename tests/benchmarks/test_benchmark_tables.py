"""What the benchmarks measure is right, and what they write can be read."""

from __future__ import annotations

import csv
import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import padst_fx
from benchmarks import __main__ as command
from benchmarks import (
    call_cost,
    cold_start,
    cost_records,
    kernels,
    permutation_cost,
    results_file,
    torch_formats,
    updates,
)
from benchmarks.settings import Settings
from benchmarks.structures import STRUCTURES
from benchmarks.table import Table
from benchmarks.timing import Timing
from benchmarks.training import Trainer
from padst_fx.cost.devices import device_of

SMALL = {name: structure for name, structure in STRUCTURES.items() if name != "Diag(width=32)"}


@pytest.fixture(scope="module")
def case() -> kernels.Case:
    return kernels.Case.of(96, 64, 70, list(SMALL))


@torch.no_grad()
@pytest.mark.parametrize("part", kernels.PARTS)
def test_every_contestant_passes_its_check(case, part):
    for contestant in case.contestants(part):
        if contestant.mode == "eager" and contestant.structure != "torch 2:4":
            assert contestant.check() <= 1, contestant.name


@torch.no_grad()
@pytest.mark.parametrize("part", kernels.PARTS)
def test_a_broken_kernel_fails_its_check(case, part):
    """One weight in a thousand a little off is enough to be noticed."""
    layers = {name: case.sparse[name] for name in ("Diag()", "Block(16)")}
    for contestant in dataclasses.replace(case, sparse=layers).contestants(part):
        if contestant.structure not in layers or contestant.mode != "eager":
            continue
        y = contestant.call().clone()
        y.view(-1)[0] *= 1.01
        check = contestant.check.args[0]
        assert check(contestant.call()) <= 1
        assert check(y) > 1
        assert check(y[:-1]) == float("inf")
        assert check(torch.full_like(y, torch.nan)) == float("inf")


def test_torch_formats_keep_a_tenth():
    weight = torch.randn(64, 160)
    for make in (torch_formats.csr, torch_formats.bsr):
        kept = make(weight).to_dense()
        assert torch.equal(kept[kept != 0], weight[kept != 0])
        assert int((kept != 0).sum()) == 64 * 16


class Tiny(nn.Module):
    """Looks like a classifier of transformers: images in, an object with logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 32, 16, 16)
        self.inner = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
        self.head = nn.Linear(32, 1000)

    def forward(self, images: torch.Tensor) -> SimpleNamespace:
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        return SimpleNamespace(logits=self.head(self.inner(tokens).mean(1)))


def trainer(permutation: str) -> Trainer:
    torch.manual_seed(0)
    model = padst_fx.sparsify(Tiny(), "diag", 0.9, permutation=permutation)
    made = Trainer.of(model, 2)
    return Trainer(model, made.optimizer, eager_loss(model), made.images, made.labels)


def eager_loss(model: nn.Module):
    def loss(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model(images).logits, labels)

    return loss


@pytest.mark.parametrize("permutation", ["identity", "random"])
def test_a_training_step_is_checked_against_a_dense_one(permutation):
    right = trainer(permutation)
    assert right.error() <= 1
    assert all(parameter.grad is None for parameter in right.model.parameters())
    right.step()
    assert right.error() <= 1


def test_a_wrong_gradient_is_found():
    wrong = trainer("identity")
    layer = wrong.model.inner[0]
    layer.values.register_hook(lambda gradient: gradient * 1.01)
    assert wrong.error() > 1


def test_scoring_steps_and_updates_take_turns():
    times = updates.measure_updates(trainer("identity"), rounds=2)
    assert {kind: len(timed.rounds) for kind, timed in times.items()} == dict.fromkeys(
        updates.KINDS, 2
    )
    assert all(seconds > 0 for timed in times.values() for seconds in timed.rounds)


def test_shares_of_a_training_by_hand():
    times = {
        "plain": Timing((0.1, 0.1)), "scoring": Timing((0.2, 0.2)), "update": Timing((0.05, 0.05))
    }  # fmt: skip
    row = updates.row_of("Diag()", times)
    assert row["scoring_in_plain_steps"] == 2.0
    assert (row["update_share"], row["whole_share"]) == (0.005, 0.015)


def test_calls_are_compared_with_dense_ones_of_their_form():
    table = call_cost.run(Settings(True, 1, ("Diag()",)))
    found = {(row["structure"], row["call"]): row for row in table.rows}
    assert set(found) == {(s, c) for s in ("dense", "Diag()") for c in ("function", "module")}
    for (_, form), row in found.items():
        more = row["microseconds"] - found["dense", form]["microseconds"]
        assert row["more_than_dense"] == pytest.approx(more, abs=2e-3)
    for call in call_cost.contestants().values():
        assert call().shape == (1, call_cost.FEATURES)


def test_compiles_are_compared_within_their_round():
    rows = cold_start.rows_of(
        {("import", ""): [0.5], ("compile", "dense"): [10.0, 20.0], ("compile", "x"): [11.0, 24.0]}
    )
    assert [row["of_dense"] for row in rows] == [None, 1.0, 1.15]
    assert [row["seconds"] for row in rows] == [0.5, 15.0, 17.5]


def test_a_result_file_is_rewritten_and_says_what_measured_it(tmp_path):
    for value in (1, 2):
        path = results_file.write("numbers", [{"value": value}], tmp_path)
    (row,) = csv.DictReader(path.open(newline=""))
    assert row["value"] == "2"
    assert row["torch"] == torch.__version__
    for column in ("cpu", "threads", "kernels", "python", "commit"):
        assert column in row


def forward_row(structure: str, mode: str = "eager", status: str = "ok") -> dict[str, object]:
    return {
        "part": "forward", "out": 96, "in": 64, "tokens": 16, "structure": structure, "mode": mode,
        "status": status, "microseconds": 12.5, "ratio": 2.0, "ratio_low": 1.5, "ratio_high": 2.5,
    }  # fmt: skip


def test_right_forwards_become_costs(tmp_path):
    rows = [
        forward_row("dense"),
        forward_row("dense", "compiled"),
        forward_row("Block(16)"),
        forward_row("NM(1, 10)", status="wrong"),
        forward_row("torch CSR"),
        {**forward_row("Diag()"), "part": "input gradient"},
    ]
    found = cost_records.records(rows)
    names = [(record.structure, record.nonzeros) for record in found]
    assert names == [("dense", 96 * 64), ("Block(size=16)", 6 * 256)]
    device = device_of(torch.device("cpu"))
    assert {(r.device, r.kernels, r.threads, r.microseconds) for r in found} == {
        (device.name, device.kernels, device.threads, 12.5)
    }


def test_costs_know_their_dtype():
    rows = [forward_row("Block(16)"), {**forward_row("Block(16)"), "dtype": "bfloat16"}]
    assert [record.dtype for record in cost_records.records(rows)] == ["float32", "bfloat16"]


def test_the_picture_has_a_line_per_structure_and_the_break_even(tmp_path):
    rows = [
        {**forward_row(name), "tokens": tokens}
        for name in ("dense", "Diag()", "torch CSR")
        for tokens in (1, 16)
    ]
    from benchmarks import plots

    table = Table(
        "small", "title", rows, (["a"], [["b"]]),
        lambda: plots.ratio_against_tokens(rows, ["forward"]),
    )  # fmt: skip
    paths = results_file.write_table(table, tmp_path)
    assert [path.name for path in paths] == ["small.csv", "small.png"]
    figure = plots.ratio_against_tokens(rows, ["forward"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "break-even", "Diag()", "torch CSR",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "given",
    [["speed"], ["--only", "diag"], ["--rounds", "0"], ["memory", "--record-costs"],
     ["--quick", "--record-costs"]],
)  # fmt: skip
def test_bad_arguments_are_refused(given, capsys):
    with pytest.raises(SystemExit) as left:
        command.arguments(given)
    assert left.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_all_tables_are_the_default():
    asked = command.arguments([])
    assert (asked.tables, asked.quick, asked.only) == ([], False, [])
    assert command.arguments(["kernels", "--record-costs"]).record_costs


@pytest.mark.parametrize("given", [["--quick"], ["--only", "Diag()"]])
def test_what_measures_less_leaves_the_full_results_alone(given, tmp_path, monkeypatch):
    table = Table("small", "title", [{"ratio": 1}], (["a"], [["b"]]))
    monkeypatch.setattr(command, "TABLES", {"small": lambda settings: table})
    monkeypatch.setattr(results_file, "RESULTS", tmp_path / "results")
    monkeypatch.setattr("sys.argv", ["benchmarks", *given])
    monkeypatch.chdir(tmp_path)
    assert command.main() == 0
    written = [path.relative_to(tmp_path) for path in tmp_path.rglob("*.csv")]
    assert written == [command.PARTIAL_FOLDER / "small.csv"]


def test_it_is_told_where_dense_wins():
    rows = [
        {**forward_row("Diag()"), "ratio": 0.5},
        {**forward_row("Diag()"), "ratio": 0.876, "tokens": 1},
        {**forward_row("Diag()", "compiled"), "ratio": 0.1},
        {**forward_row("torch CSR"), "ratio": 0.1},
        forward_row("Block(16)"),
        {**forward_row("NM(1, 10)", status="wrong"), "ratio": None},
    ]
    assert kernels.dense_wins(rows) == [
        "dense wins, by out x in and tokens:",
        "forward, Diag(): 96 x 64 at 16 (0.50), 96 x 64 at 1 (0.88)",
    ]
    assert kernels.dense_wins(rows[-2:]) == ["dense wins nowhere"]


@pytest.mark.parametrize("wrong", [0, 2])
def test_a_wrong_result_fails_the_command(monkeypatch, tmp_path, capsys, wrong):
    rows = [{"value": 1, "status": status} for status in ["ok", *["wrong"] * wrong]]
    table = Table("memory", "title", rows, (["a"], [["b"]]))
    monkeypatch.setitem(command.TABLES, "memory", lambda settings: table)
    monkeypatch.setattr("sys.argv", ["benchmarks", "memory", "--output", str(tmp_path)])
    with command.inductor.patch(compile_threads=1):
        assert command.main() == (1 if wrong else 0)
    printed = capsys.readouterr()
    assert ("2 results were wrong" in printed.err) == bool(wrong)
    assert "kernels" in printed.out and (tmp_path / "memory.csv").exists()


def test_a_whole_training_is_weighted_by_its_steps():
    times = {"plain": Timing((1.0,)), "scoring": Timing((3.0,)), "update": Timing((2.0,))}
    assert permutation_cost.whole(times).median == pytest.approx((99 * 1 + 3 + 2) / 100)


def test_the_peak_is_what_is_held_at_once():
    def call() -> None:
        first = torch.ones(2**18)
        second = first + 1
        del first
        second.neg()

    # Scalars take a few bytes.
    assert 0 <= permutation_cost._peak(call) - 2 * 2**20 < 1024
