"""`torch.compiler.save_cache_artifacts`: another machine's first compile is a look-up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from deployment import run_python

# A forward and a training step: graphs of inference, forward and backward.
COMPILE = """
import json, sys
from pathlib import Path
import torch
from padst_fx import SparseLinear
from torch._dynamo.utils import counters

file = Path(sys.argv[1])
if file.exists():
    assert torch.compiler.load_cache_artifacts(file.read_bytes()) is not None
torch.manual_seed(0)
model = torch.nn.Sequential(  # its graphs have our ops and no loops for a C++ compiler
    SparseLinear(32, 64, "diag", 0.5, permutation="random", bias=False),
    SparseLinear(64, 32, "1:2", 0.5, permutation="random", bias=False),
)
x = torch.randn(3, 32)
compiled = torch.compile(model, backend="padst", fullgraph=True)
with torch.no_grad():
    y = compiled(x)
torch.testing.assert_close(y, model(x), rtol=1e-5, atol=1e-5)
compiled(x).sum().backward()
if not file.exists():
    file.write_bytes(torch.compiler.save_cache_artifacts()[0])
print(json.dumps({**counters["inductor"], **counters["aot_autograd"]}))
"""

# An empty cache folder has no probes of vector instructions either, and there is nothing for
# processes that compile.
QUICKLY = {"TORCHINDUCTOR_VEC_ISA_OK": "0", "TORCHINDUCTOR_COMPILE_THREADS": "1"}


@pytest.fixture
def compile_in_a_fresh_process(tmp_path: Path) -> Any:
    """Counts of what the caches did, in a process that finds no cache but the artifacts' file."""

    def run(folder: str) -> dict[str, int]:
        cache = str(tmp_path / folder)
        environment = {"TORCHINDUCTOR_CACHE_DIR": cache, **QUICKLY}
        return json.loads(run_python(COMPILE, tmp_path / "artifacts", **environment))

    return run


def counted(counts: dict[str, int], how: str) -> dict[str, int]:
    """Those of one kind, by the name of the cache."""
    return {key[: -len(how)]: n for key, n in counts.items() if key.endswith(how)}


def test_a_second_process_finds_all_graphs(compile_in_a_fresh_process: Any) -> None:
    first = compile_in_a_fresh_process("first")
    missed = counted(first, "cache_miss")
    assert missed == {"autograd_": 2, "fxgraph_": 3} and not counted(first, "cache_hit")
    second = compile_in_a_fresh_process("second")
    assert counted(second, "cache_hit") == missed and not counted(second, "cache_miss")
    assert not counted(first, "cache_bypass") and not counted(second, "cache_bypass")
