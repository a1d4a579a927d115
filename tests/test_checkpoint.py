"""save and load: a fresh process, shared tensors, damaged and mismatched files."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
import torch
from torch import nn

import padst_fx
from padst_fx import NM, Block, CheckpointError, Diag, Unstructured

STRUCTURES = ["diag", Diag(width=4, run=2), Block(8), "nm", NM(2, 4, tile=4), Unstructured()]
BUILD = """
import torch
from torch import nn

def build():
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0)
    model = nn.ModuleDict({
        "embed": nn.Embedding(12, 16),
        "encoder": nn.TransformerEncoder(layer, 1),
        "head": nn.Linear(16, 12, bias=False),
    })
    model["head"].weight = model["embed"].weight
    return model.eval()

def run(model, tokens):
    return model["head"](model["encoder"](model["embed"](tokens)))
"""
namespace: dict = {}
exec(BUILD, namespace)
build, run = namespace["build"], namespace["run"]
TOKENS = torch.arange(10).view(2, 5)


def saved(tmp_path, structure="diag", permutation="random"):
    torch.manual_seed(0)
    sparsity = 0.5 if isinstance(structure, NM) else 0.75
    model = padst_fx.sparsify(build(), structure, sparsity, permutation=permutation)
    path = tmp_path / "model.safetensors"
    padst_fx.save(model, path)
    return model, path


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_a_fresh_process_loads_it_into_a_dense_model(tmp_path, structure):
    model, path = saved(tmp_path, structure)
    script = BUILD + f"""
import padst_fx
torch.manual_seed(5)
model = padst_fx.load(build, {str(path)!r})
torch.save((run(model, torch.arange(10).view(2, 5)), model.state_dict()), {str(tmp_path / "o")!r})
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    output, state = torch.load(tmp_path / "o", weights_only=True)
    assert torch.equal(output, run(model, TOKENS))
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], t) for name, t in model.state_dict().items())


def test_tied_weights_stay_tied(tmp_path):
    _, path = saved(tmp_path)
    loaded = padst_fx.load(build, path)
    assert loaded["head"].weight is loaded["embed"].weight


def test_roles_and_structures_come_back(tmp_path):
    model, path = saved(tmp_path, Block(8))
    loaded = padst_fx.load(build(), path)
    assert str(padst_fx.summary(loaded)) == str(padst_fx.summary(model))


def test_loading_into_a_model_sparsified_alike(tmp_path):
    model, path = saved(tmp_path)
    other = padst_fx.sparsify(build(), "diag", 0.75, permutation="random")
    assert padst_fx.load(other, path) is other
    assert torch.equal(run(other, TOKENS), run(model, TOKENS))


def test_the_file_follows_the_sparsity(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 512, bias=False), nn.Linear(512, 2, bias=False))
    padst_fx.sparsify(model, "diag", 0.9)
    padst_fx.save(model, tmp_path / "m")
    assert (tmp_path / "m").stat().st_size < 0.12 * 512 * 512 * 4


def refused(path, message, model=None):
    model = build() if model is None else model
    before = {name: (type(m), id(m)) for name, m in model.named_modules()}
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError, match=message):
        padst_fx.load(model, path)
    assert {name: (type(m), id(m)) for name, m in model.named_modules()} == before
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize("at", [0.001, 0.1, 0.5, 0.9, 0.9999])
def test_truncated_files(tmp_path, at):
    _, path = saved(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * at)])
    refused(path, "damaged")


def test_any_flipped_bit_is_noticed(tmp_path):
    _, path = saved(tmp_path)
    content = bytearray(path.read_bytes())
    generator = torch.Generator().manual_seed(0)
    for position in torch.randint(len(content), (60,), generator=generator).tolist():
        content[position] ^= 4
        path.write_bytes(bytes(content))
        refused(path, "damaged|not written by|version")
        content[position] ^= 4


def test_not_a_checkpoint(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "other.safetensors")
    refused(tmp_path / "other.safetensors", "not written by padst_fx.save")
    (tmp_path / "text").write_text("hello, this is no checkpoint at all")
    refused(tmp_path / "text", "damaged or not a safetensors file")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        padst_fx.load(build, tmp_path / "nowhere")


def test_another_version(tmp_path, monkeypatch):
    monkeypatch.setattr(padst_fx.checkpoint, "VERSION", 2)
    _, path = saved(tmp_path)
    monkeypatch.undo()
    refused(path, "format version 2; this package reads 1")


def with_model(change):
    model = build()
    change(model)
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(16, 16)), "the model has no module encoder"),
        (
            lambda: with_model(
                lambda m: setattr(m["encoder"].layers[0], "linear1", nn.Linear(16, 64))
            ),
            r"linear1 is \[32, 16\] in the checkpoint and \[64, 16\] in the model",
        ),
        (
            lambda: with_model(
                lambda m: setattr(m["encoder"].layers[0], "linear1", nn.Conv1d(16, 32, 1))
            ),
            "linear1 is sparse in the checkpoint, but Conv1d is not a dense projection",
        ),
        (lambda: build().double(), r"is torch.float32 .* in the checkpoint and torch.float64"),
        (
            lambda: with_model(lambda m: m.add_module("extra", nn.Linear(2, 2))),
            r"missing \['extra.bias', 'extra.weight'\]",
        ),
        (
            lambda: padst_fx.sparsify(build(), Block(8), 0.75),
            "differs in structure: the checkpoint has {'name': 'diag'",
        ),
        (
            lambda: padst_fx.sparsify(build(), "diag", 0.5, permutation="random"),
            "differs in active",
        ),
        (
            lambda: padst_fx.sparsify(build(), "diag", 0.75),
            "differs in permutation: the checkpoint has random, the model identity",
        ),
    ],
)
def test_mismatched_models_are_refused_untouched(tmp_path, model, message):
    _, path = saved(tmp_path)
    refused(path, message, model())


def test_a_layer_dense_in_the_file_and_sparse_in_the_model(tmp_path):
    model = padst_fx.sparsify(build(), "diag", 0.75, exclude="*linear1")
    padst_fx.save(model, tmp_path / "m")
    refused(
        tmp_path / "m",
        "linear1 is sparse in the model but dense in the checkpoint",
        padst_fx.sparsify(build(), "diag", 0.75),
    )


def test_nothing_to_save(tmp_path):
    with pytest.raises(ValueError, match="no SparseLinear"):
        padst_fx.save(build(), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    model, path = saved(tmp_path)
    content = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        padst_fx.save(model, path)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_the_header_is_plain_json(tmp_path):
    from safetensors import safe_open

    _, path = saved(tmp_path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["padst_fx"])
    layer = header["layers"]["encoder.layers.0.linear1"]
    assert layer["structure"] == {"name": "diag", "width": 1, "run": 1}
    assert layer["shape"] == [32, 16] and layer["role"] == "mlp_in"
