"""`torch.export` of models with our ops: saved here, loaded and run in another process."""

from __future__ import annotations

from pathlib import Path

import torch
from deployment import dense_result, every_structure, inputs, run_python
from torch.export import Dim

import padst_fx

GIVEN = [inputs(*size, seed=seed) for seed, size in enumerate(((2, 5), (3, 9), (7, 2)))]

LOAD_AND_RUN = """
import sys, torch
import padst_fx
programs, given, computed = sys.argv[1:3], torch.load(sys.argv[3]), sys.argv[4]
modules = [torch.export.load(program).module() for program in programs]
torch.save([[module(x) for x in given] for module in modules], computed)
"""


@torch.no_grad()
def test_trained_and_frozen_models_are_saved_and_loaded(tmp_path: Path) -> None:
    model = every_structure()
    shapes = ({0: Dim("batch"), 1: Dim("tokens")},)
    frozen = padst_fx.freeze(model, GIVEN[0], shapes, skip_slower=False)
    files = []
    for name, module in (("model", model), ("frozen", frozen.program)):
        program = torch.export.export(module, (GIVEN[0],), dynamic_shapes=shapes)
        files.append(tmp_path / f"{name}.pt2")
        torch.export.save(program, files[-1])
    torch.save(GIVEN, tmp_path / "given.pt")
    run_python(LOAD_AND_RUN, *files, tmp_path / "given.pt", tmp_path / "computed.pt")
    for computed in torch.load(tmp_path / "computed.pt"):
        for x, y in zip(GIVEN, computed, strict=True):
            torch.testing.assert_close(y.double(), dense_result(model, x), rtol=1e-5, atol=1e-5)
