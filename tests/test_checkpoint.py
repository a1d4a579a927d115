"""save and load: a fresh process, shared tensors, damaged and mismatched files."""

from __future__ import annotations

import copy
import json
import os
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


def test_a_fresh_process_loads_each_structure_into_a_dense_model(tmp_path):
    models = {}
    for number, structure in enumerate(STRUCTURES):
        (tmp_path / str(number)).mkdir()
        models[number], _ = saved(tmp_path / str(number), structure)
    script = BUILD + f"""
import padst_fx
from pathlib import Path
torch.manual_seed(5)
for folder in map(Path({str(tmp_path)!r}).joinpath, {[str(number) for number in models]!r}):
    model = padst_fx.load(build, folder / "model.safetensors")
    loaded = run(model, torch.arange(10).view(2, 5)), model.state_dict()
    torch.save(loaded, folder / "loaded")
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    for number, model in models.items():
        output, state = torch.load(tmp_path / str(number) / "loaded", weights_only=True)
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


@pytest.mark.parametrize("buffer", ["index", "perm"])
@pytest.mark.parametrize(
    "structure", [Diag(), Diag(width=2), Block(2), NM(1, 4), Unstructured()], ids=str
)
def test_a_damaged_topology_is_refused_and_the_model_left_alone(tmp_path, structure, buffer):
    def build():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.ReLU())

    sparsity = None if isinstance(structure, NM) else 0.5
    options = {"permutation": "random", "init": "random", "include": ["0", "1"]}
    model = padst_fx.sparsify(build(), structure, sparsity, **options)
    state = model.state_dict()
    tensor = getattr(model[1], buffer)
    tensor.view(-1)[-1] = not tensor.view(-1)[-1] if tensor.dtype == torch.bool else 7 + 4
    reason = "no units" if buffer == "index" else "not a permutation of 8 inputs"
    padst_fx.save(model, tmp_path / "model.safetensors")
    dense = build()
    with pytest.raises(CheckpointError, match=f"1 is damaged: .*{reason}"):
        padst_fx.load(dense, tmp_path / "model.safetensors")
    assert not any(isinstance(module, padst_fx.SparseLinear) for module in dense)
    other = padst_fx.sparsify(build(), structure, sparsity, **options)
    before = other[1].values.clone()
    with pytest.raises(ValueError, match=f"cannot load 1: .*{reason}"):
        other.load_state_dict(state)
    assert torch.equal(other[1].values, before)


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
    monkeypatch.setattr("padst_fx.checkpoint_file.VERSION", 2)
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


def shared_block():
    torch.manual_seed(1)
    block = nn.Sequential(nn.Linear(32, 32), nn.ReLU())
    return nn.Sequential(block, block, nn.Linear(32, 4))


def shared_attention():
    torch.manual_seed(1)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0).eval()
    return nn.Sequential(layer, layer, nn.Linear(16, 4))


def shared_linear():
    torch.manual_seed(1)
    layer = nn.Linear(16, 16)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(16, 4))


@pytest.mark.parametrize("make", [shared_block, shared_attention, shared_linear])
def test_modules_registered_twice_load_and_stay_one(tmp_path, make):
    model = padst_fx.sparsify(make(), "diag", 0.5, permutation="random")
    padst_fx.save(model, tmp_path / "m")
    loaded = padst_fx.load(make, tmp_path / "m")
    features = 32 if make is shared_block else 16
    x = torch.randn(2, 3, features)
    assert torch.equal(loaded(x), model(x))
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert loaded[0] is loaded[2 if make is shared_linear else 1]


def test_a_meta_model_is_refused(tmp_path):
    model, path = saved(tmp_path)
    with pytest.raises(CheckpointError, match=r"embed\.weight of the model is on the meta device"):
        padst_fx.load(build().to("meta"), path)
    with pytest.raises(ValueError, match=r"embed\.weight is on the meta device"):
        padst_fx.save(model.to("meta"), tmp_path / "other")


def test_extra_state_is_refused_at_save(tmp_path):
    class Counter(nn.Linear):
        def get_extra_state(self):
            return {"steps": 3}

        def set_extra_state(self, state):
            pass

    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), Counter(16, 2))
    padst_fx.sparsify(model, "diag", 0.5, exclude="2")
    with pytest.raises(ValueError, match=r"cannot save 2\._extra_state: it is a dict"):
        padst_fx.save(model, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_a_lone_layer_loads_in_place_of_a_dense_one(tmp_path):
    layer = padst_fx.SparseLinear(8, 12, "diag", 0.5, permutation="random")
    padst_fx.save(layer, tmp_path / "m")
    x = torch.randn(3, 8)
    for root in (nn.Linear(8, 12), padst_fx.SparseLinear(8, 12, "diag", 0.5, True, "random")):
        loaded = padst_fx.load(root, tmp_path / "m")
        assert isinstance(loaded, padst_fx.SparseLinear)
        assert torch.equal(loaded(x), layer(x))
    refused(tmp_path / "m", "the model itself is .12, 8. in the checkpoint", nn.Linear(8, 11))


@pytest.mark.parametrize("inner", [False, True], ids=["whole", "block"])
def test_the_compile_wrapper_leaves_no_trace(tmp_path, inner):
    def wrapped(model):
        if not inner:
            return torch.compile(model, backend="eager")
        model["encoder"] = torch.compile(model["encoder"], backend="eager")
        return model

    torch.manual_seed(0)
    model = wrapped(padst_fx.sparsify(build(), "diag", 0.75))
    path = tmp_path / "m"
    padst_fx.save(model, path)
    assert b"_orig_mod" not in path.read_bytes()
    rows = padst_fx.summary(model).rows
    assert rows and not any("_orig_mod" in row.name for row in rows)
    target = wrapped(build())
    loaded = padst_fx.load(target, path)
    assert loaded is target
    plain = padst_fx.load(build, path)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, plain.state_dict()[name.replace("_orig_mod.", "")])


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_file_follows_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        _, path = saved(tmp_path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode
