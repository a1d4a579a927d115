"""Packages of AOTInductor: what they compute, in processes with padst_fx and without."""

from __future__ import annotations

import copy
import subprocess
from pathlib import Path
from zipfile import ZipFile

import model_zoo
import pytest
import torch
from deployment import EveryStructure, dense_result, every_structure, inputs, run_python
from torch import Tensor, nn
from torch.export import Dim

import padst_fx
from padst_fx.kernels.native import build, isa

PROGRAM = Path(__file__).parents[2] / "examples" / "aoti_cpp" / "run_package.cpp"
GIVEN = [inputs(*size, seed=seed) for seed, size in enumerate(((2, 5), (1, 7), (6, 3)))]

# The widest two that this processor runs, narrower first.
NAMED = list(isa.FLAGS)[: list(isa.FLAGS).index(isa.widest()) + 1][-2:]
# Headers read once beforehand, and an optimized wrapper, pay for larger models than these.
QUICKLY = {
    "aot_inductor.precompile_headers": False,
    "aot_inductor.compile_wrapper_opt_level": "O0",
}


@pytest.fixture(scope="module")
def model() -> EveryStructure:
    return every_structure()


@pytest.fixture(scope="module")
def package(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with any numbers of sequences and tokens."""
    path = tmp_path_factory.mktemp("package") / "model.pt2"
    shapes = ({0: Dim("batch"), 1: Dim("tokens")},)
    options = {"skip_slower": False, "options": QUICKLY}
    assert padst_fx.export_aoti(model, GIVEN[0], path, shapes, **options) == path
    assert list(path.parent.iterdir()) == [path]
    return path


def check(model: nn.Module, given: list[Tensor], computed: list[Tensor]) -> None:
    for x, y in zip(given, computed, strict=True):
        torch.testing.assert_close(y.double(), dense_result(model, x), rtol=1e-5, atol=1e-5)


WITHOUT_PADST_FX = """
import sys, torch
sys.modules["padst_fx"] = None  # an import of it fails
package, given, computed = sys.argv[1:]
model = torch._inductor.aoti_load_package(package)
torch.save([model(x) for x in torch.load(given)], computed)
print(hasattr(torch.ops.padst, "shift"))

del sys.modules["padst_fx"]  # and one afterwards finds its ops not yet defined
import padst_fx
layer = padst_fx.SparseLinear(32, 32, "diag", 0.5)
x = torch.randn(3, 32)
torch.testing.assert_close(layer(x), x @ layer.dense_weight().t() + layer.bias)
torch.testing.assert_close(model(torch.load(given)[0]), torch.load(computed)[0])
"""


def test_a_process_without_padst_fx(model: nn.Module, package: Path, tmp_path: Path) -> None:
    torch.save(GIVEN, tmp_path / "given.pt")
    out = run_python(WITHOUT_PADST_FX, package, tmp_path / "given.pt", tmp_path / "computed.pt")
    assert out == "False\n"
    check(model, GIVEN, torch.load(tmp_path / "computed.pt"))


def test_a_process_with_padst_fx(model: nn.Module, package: Path) -> None:
    model(GIVEN[0])
    loaded = torch._inductor.aoti_load_package(str(package))
    check(model, GIVEN, [loaded(x) for x in GIVEN])
    again = torch._inductor.aoti_load_package(str(package))
    del loaded
    check(model, GIVEN, [again(x) for x in GIVEN])


def test_a_cpp_program(model: nn.Module, package: Path, tmp_path: Path) -> None:
    program = tmp_path / "run_package"
    folder = Path(torch.__file__).parent / "lib"
    command = [*build.compiler(), "-std=c++17", *build.include_flags(), str(PROGRAM)]
    libraries = [*build.link_flags(), "-ltorch", f"-Wl,-rpath,{folder}"]
    subprocess.run([*command, "-o", str(program), *libraries], check=True)
    files = (package, tmp_path / "given.pt", tmp_path / "computed.pt")
    torch.save([GIVEN[-1]], files[1])
    subprocess.run([program, *files], check=True)
    check(model, GIVEN[-1:], torch.load(files[2]))
    failed = subprocess.run([program, "nowhere.pt2", *files[1:]], capture_output=True, check=False)
    assert failed.returncode == 1 and failed.stderr


def test_a_language_model_for_named_instruction_sets(tmp_path: Path) -> None:
    """In bfloat16; keyword arguments, outputs of a class, any number of tokens."""
    entry = model_zoo.get("gpt2")
    model = entry.build()
    del model.transformer.h[1:]
    padst_fx.sparsify(model, "1:4", 0.75, permutation="random")
    model = model.bfloat16()
    reference = padst_fx.densify(copy.deepcopy(model)).double()
    shapes = {"input_ids": {0: Dim("batch"), 1: Dim("tokens", max=32)}}
    path = padst_fx.export_aoti(
        model, entry.inputs(), tmp_path / "gpt2.pt2", shapes,
        isa=NAMED, skip_slower=False, options=QUICKLY,
    )  # fmt: skip
    inside = [Path(name).name for name in ZipFile(path).namelist()]
    kernels = [next(n for n in inside if n.startswith(f"padst_fx_{name}_")) for name in NAMED]
    loaded = torch._inductor.aoti_load_package(str(path))
    mapped = Path("/proc/self/maps").read_text()
    assert [name in mapped for name in kernels] == [name == NAMED[-1] for name in NAMED]
    for batch, tokens in ((2, 12), (3, 5)):
        ids = torch.randint(0, model_zoo.VOCABULARY, (batch, tokens))
        torch.testing.assert_close(
            loaded(input_ids=ids).logits.double(), reference(input_ids=ids).logits,
            rtol=0.05, atol=0.05,
        )  # fmt: skip
