"""ViT-B/16 in onnxruntime: exported sparse models against the dense one, on this CPU.

One image, 90 % sparse but for the head, fp32. Checked against the model that was exported.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import padst_fx
from benchmarks import plots, structures
from benchmarks.frozen import Logits
from benchmarks.measured import DENSE, Contestant, measure
from benchmarks.models import error_share, vit_b16
from benchmarks.settings import Settings
from benchmarks.table import Row, Table, noise_note, ratio_cell
from padst_fx import NM, Block, Diag, Structure, Unstructured

if TYPE_CHECKING:
    import onnxruntime

    from padst_fx.export.onnx import Report

STRUCTURES: dict[str, Structure] = {
    **structures.STRUCTURES,
    "Diag(run=16)": Diag(run=16),
    "Diag(width=64)": Diag(width=64),
    "Diag(width=96)": Diag(width=96),
    "Diag(width=128)": Diag(width=128),
    "Block(64)": Block(64),
    "NM(1, 10, tile=64)": NM(1, 10, tile=64),
    "Unstructured()": Unstructured(),
}
QUICK = ("Diag()", "Block(64)")


def contestants(dense: nn.Module, images: Tensor, names: list[str], threads: int,
                folder: Path) -> Iterator[Contestant]:  # fmt: skip
    """Dense, and every structure in the form that the export chose."""
    yield _contestant(DENSE, dense, images, threads, folder)
    for name in names:
        model = padst_fx.sparsify(
            deepcopy(dense), STRUCTURES[name], structures.SPARSITY, permutation="identity"
        )
        yield _contestant(name, model, images, threads, folder)


def _contestant(
    name: str, model: nn.Module, images: Tensor, threads: int, folder: Path
) -> Contestant:
    path = folder / f"{name}.onnx"
    report = padst_fx.export_onnx(model, images, path)
    call = partial(_run, session(path, threads), images)
    check = partial(error_share, model(images), call)
    return Contestant(name, "onnxruntime", call, check, _facts(report))


def _facts(report: Report) -> dict[str, Any]:
    forms = ", ".join(f"{count} {form}" for form, count in sorted(report.counts.items()))
    size = round(report.size / 1e6, 2)
    return {"forms": forms, "megabytes": size, "stored": round(report.share, 4)}


def session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """A session whose threads rest between its runs: others take turns with it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _run(opened: onnxruntime.InferenceSession, images: Tensor) -> Tensor:
    (given,) = opened.get_inputs()
    (logits,) = opened.run(None, {given.name: images.numpy()})
    return torch.from_numpy(logits)


@torch.no_grad()
def run(settings: Settings) -> Table:
    """Measure every structure with as many threads as torch has."""
    names = settings.choose(STRUCTURES, QUICK)
    dense, images = Logits(vit_b16(settings.layers)).eval(), torch.randn(1, 3, 224, 224)
    facts = {
        "workload": "ViT-B/16", "layers": settings.layers, "batch": 1,
        "onnxruntime": version("onnxruntime"),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        found = list(contestants(dense, images, names, torch.get_num_threads(), Path(folder)))
        rows = measure(found, settings.rounds, facts)
    return Table(
        name="onnx",
        title="ViT-B/16, 1 image, fp32, onnxruntime: dense time by sparse time",
        rows=rows,
        shown=_shown(rows),
        draw=partial(_draw, rows),
        notes=[noise_note(rows)],
    )


def _shown(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    columns = ["structure", "forms", "MB", "stored / dense", "ms", "dense / sparse"]
    return columns, [
        [
            row["structure"], row["forms"], f"{row['megabytes']:.1f}", f"{row['stored']:.3f}",
            f"{row['microseconds'] / 1000:,.1f}" if row["status"] == "ok" else "", ratio_cell(row),
        ]
        for row in rows
    ]  # fmt: skip


def _draw(rows: list[Row]) -> Any:
    best = [row for row in rows if row["status"] == "ok" and row["structure"] != DENSE]
    return plots.bars([("ViT-B/16, 1 image", best)], "dense time / sparse time, onnxruntime")
