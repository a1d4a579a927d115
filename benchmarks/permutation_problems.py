"""Problems whose best permutation is known: how far each kind of permutation gets.

`python -m benchmarks.permutation_problems` trains a sparse student on the outputs of a permuted
diagonal teacher, for every problem, kind and seed, and writes `permutation_problems.csv`:

- *planted*: Gaussian inputs, the student has the teacher's diagonals and looks for its permutation;
- *teacher-student*: the diagonals are unknown too and RigL looks for them, at 90 % sparsity;
- *correlated*: the same with inputs whose neighbours are alike, which is what real layers see.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import results_file
from padst_fx import DST, Diag, SparseLinear
from padst_fx.permutation import PERMUTATIONS
from padst_fx.tables import render

STEPS = 3000
BATCH = 256
DELTA_T = 25
T_END_SHARE = 0.75
LEARNING_RATE = 1e-2
EVALUATED = 4096


@dataclass(frozen=True)
class Problem:
    """A `[features, features]` teacher of `diagonals` wrapped diagonals behind a permutation.

    With `known_diagonals` the student has its index from the start. Two inputs `distance` apart
    are correlated by `correlation ** distance`.
    """

    features: int
    diagonals: int
    known_diagonals: bool = False
    correlation: float = 0.0


PROBLEMS = {
    "planted 64": Problem(64, 6, known_diagonals=True),
    "planted 256": Problem(256, 24, known_diagonals=True),
    "teacher-student": Problem(128, 13),
    "correlated": Problem(128, 13, correlation=0.9),
}


@dataclass(frozen=True)
class Outcome:
    """`found` is the share of positions that read the teacher's feature (diagonals known only),
    `loss` the squared error on new data over the variance of the teacher's outputs."""

    found: float | None
    loss: float
    seconds: float


def layer(problem: Problem, permutation: str) -> SparseLinear:
    """A teacher or a student, drawn from torch's generator."""
    pattern = Diag().pattern(problem.features, problem.features, problem.diagonals)
    return SparseLinear(
        problem.features, problem.features, pattern, bias=False, permutation=permutation
    )


def mixing(problem: Problem) -> Tensor | None:
    """`[features, features]` that gives independent inputs the problem's covariance."""
    if not problem.correlation:
        return None
    place = torch.arange(problem.features, dtype=torch.float64)
    covariance = problem.correlation ** (place[:, None] - place).abs()
    return torch.linalg.cholesky(covariance).t().float()


def draw_inputs(
    problem: Problem, mixed: Tensor | None, count: int, generator: torch.Generator
) -> Tensor:
    """`[count, features]`, each of unit variance."""
    x = torch.randn(count, problem.features, generator=generator)
    return x if mixed is None else x @ mixed


def train(problem: Problem, kind: str, seed: int, steps: int = STEPS, **settings: Any) -> Outcome:
    """One student with permutation `kind`; `settings` go to `DST`."""
    torch.manual_seed(seed)
    teacher = layer(problem, "random").requires_grad_(False)
    student = layer(problem, kind)
    if problem.known_diagonals:
        student.index.copy_(teacher.index)
    model = nn.Sequential(student)
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    # So small a fraction of the diagonals is none: known ones stay.
    fraction = 1e-9 if problem.known_diagonals else 0.3
    t_end = round(T_END_SHARE * steps)
    chosen = {"delta_t": DELTA_T, "t_end": t_end, "drop_fraction": fraction, **settings}
    dst = DST(model, optimizer, "rigl", **chosen)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    mixed = mixing(problem)
    start = time.perf_counter()
    for _ in range(steps):
        x = draw_inputs(problem, mixed, BATCH, generator)
        loss = nn.functional.mse_loss(model(x), teacher(x)) + dst.penalty()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        dst.step()
    seconds = time.perf_counter() - start
    x = draw_inputs(problem, mixed, EVALUATED, torch.Generator().manual_seed(2**31))
    return Outcome(found_share(problem, student, teacher), _loss(x, model, teacher), seconds)


@torch.no_grad()
def _loss(x: Tensor, model: nn.Module, teacher: SparseLinear) -> float:
    target = teacher(x)
    return float((model(x) - target).square().sum() / target.square().sum())


def found_share(problem: Problem, student: SparseLinear, teacher: SparseLinear) -> float | None:
    """Positions that read the teacher's feature; None where a turn of both fits as well."""
    if not problem.known_diagonals:
        return None
    present = student.perm if student.perm.numel() else torch.arange(problem.features)
    return float((present == teacher.perm).double().mean())


def rows(problems: list[str], kinds: list[str], seeds: int, steps: int) -> list[dict[str, Any]]:
    """One row a training."""
    found = []
    for name in problems:
        for kind in kinds:
            for seed in range(seeds):
                outcome = train(PROBLEMS[name], kind, seed, steps)
                share = "" if outcome.found is None else round(outcome.found, 4)
                found.append(
                    {
                        "problem": name,
                        "permutation": kind,
                        "seed": seed,
                        "steps": steps,
                        "found": share,
                        "loss": f"{outcome.loss:.3e}",
                        "seconds": round(outcome.seconds, 2),
                    }
                )
                print(*found[-1].values(), flush=True)
    return found


def shown(found: list[dict[str, Any]]) -> str:
    """Means over the seeds."""
    lines = []
    for name, kind in dict.fromkeys((row["problem"], row["permutation"]) for row in found):
        mine = [r for r in found if (r["problem"], r["permutation"]) == (name, kind)]
        shares = [row["found"] for row in mine if row["found"] != ""]
        losses = [float(row["loss"]) for row in mine]
        share = f"{mean(shares):.1%} ({min(shares):.0%} to {max(shares):.0%})" if shares else ""
        lines.append((name, kind, share, f"{mean(losses):.4f}", f"{max(losses):.4f}"))
    return render("means over seeds", ("problem", "kind", "found", "loss", "worst loss"), lines)


def main() -> None:
    """Train everything asked for and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.permutation_problems")
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--kinds", nargs="+", choices=PERMUTATIONS, default=list(PERMUTATIONS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--output", type=Path, default=results_file.RESULTS)
    asked = parser.parse_args()
    found = rows(asked.problems, asked.kinds, asked.seeds, asked.steps)
    print(shown(found))
    print(f"written to {results_file.write('permutation_problems', found, asked.output)}")


if __name__ == "__main__":
    main()
