"""What changing masks costs: a scoring step against a plain one, and the update itself.

RigL trains a sparse ViT-B/16 with an update every second step, so that plain and scoring steps
take turns; a real training updates every `DELTA_T` steps.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

import padst_fx
from benchmarks import plots
from benchmarks.settings import Settings
from benchmarks.structures import MODELS, QUICK_MODELS
from benchmarks.table import Row, Table
from benchmarks.timing import Ratio, Timing, seconds
from benchmarks.training import Trainer, trainers

DELTA_T = 100
KINDS = ("plain", "scoring", "update")


def measure_updates(trainer: Trainer, rounds: int) -> dict[str, Timing]:
    """Seconds of plain steps, of scoring steps and of updates; each once before, uncounted."""
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    dst = padst_fx.DST(trainer.model, trainer.optimizer, "rigl", delta_t=2, t_end=10**9)
    layer = next(m for m in trainer.model.modules() if isinstance(m, padst_fx.SparseLinear))
    while len(times["update"]) <= rounds:
        kind = "scoring" if layer.scoring else "plain"
        times[kind].append(seconds(trainer.step))
        spent = seconds(dst.step)
        if kind == "scoring":
            assert dst.last_update is not None and dst.last_update.step == dst.steps
            times["update"].append(spent)
    dst.close()
    return {kind: Timing(tuple(row[1:])) for kind, row in times.items()}


def row_of(name: str, times: dict[str, Timing]) -> Row:
    """Medians, the scoring step in plain steps, and shares of a training of 100 steps an update."""
    plain, scoring, update = (times[kind].median for kind in KINDS)
    ratio = Ratio.of(times["plain"], times["scoring"])
    between = DELTA_T * plain
    return {
        "structure": name,
        "plain_ms": round(1e3 * plain, 2),
        "scoring_ms": round(1e3 * scoring, 2),
        "update_ms": round(1e3 * update, 2),
        "scoring_in_plain_steps": round(scoring / plain, 3),
        "scoring_low": round(1 / ratio.high, 3),
        "scoring_high": round(1 / ratio.low, 3),
        "update_share": round(update / between, 5),
        "whole_share": round((update + scoring - plain) / between, 5),
        "rounds": len(times["update"].rounds),
    }


def run(settings: Settings) -> Table:
    """Measure every structure, one after the other."""
    names = settings.choose(MODELS, QUICK_MODELS)
    rows: list[Row] = []
    for name, permutation, trainer in trainers(settings, names):
        if permutation != "identity":
            continue
        rows.append(row_of(name, measure_updates(trainer, settings.rounds)))
        torch.compiler.reset()
    return Table(
        name="updates",
        title=f"mask updates of a ViT-B/16 in training; shares at one update in {DELTA_T} steps",
        rows=rows,
        shown=_shown(rows),
        draw=partial(_draw, rows),
    )


def _shown(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    columns = [
        "model", "plain step ms", "scoring step ms", "scoring / plain", "update ms",
        "update, share", "update and scoring, share",
    ]  # fmt: skip
    return columns, [
        [
            row["structure"],
            f"{row['plain_ms']:,}",
            f"{row['scoring_ms']:,}",
            f"{row['scoring_in_plain_steps']:.2f}",
            f"{row['update_ms']:,}",
            f"{row['update_share']:.2%}",
            f"{row['whole_share']:.2%}",
        ]
        for row in rows
    ]


def _draw(rows: list[Row]) -> Any:
    """The scoring step in plain steps."""
    mine = [
        {
            "structure": row["structure"],
            "ratio": row["scoring_in_plain_steps"],
            "ratio_low": row["scoring_low"],
            "ratio_high": row["scoring_high"],
        }
        for row in rows
    ]
    return plots.bars([("a scoring step", mine)], "time in plain steps")
