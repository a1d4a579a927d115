"""200 compiled steps with an update every 5: two graphs, no recompilation, no moved tensor."""

from __future__ import annotations

import model_zoo
import pytest
import torch
from torch._dynamo.utils import counters

import padst_fx
from padst_fx import DST, NM, Block, Diag, Unstructured

CASES = [
    ("diag", "rigl", "inductor", "random"),
    ("diag", "dynadiag", "aot_eager", "random"),
    (Diag(width=8, run=2), "rigl", "aot_eager", "random"),
    (Block(8), "rigl", "aot_eager", "random"),
    (NM(1, 4), "rigl", "aot_eager", "random"),
    (Unstructured(), "rigl", "aot_eager", "random"),
    ("diag", "rigl", "inductor", "learned"),
    (Block(8), "set", "aot_eager", "learned"),
    (NM(1, 4, tile=16), "mest", "aot_eager", "learned"),
]


@pytest.mark.parametrize(("structure", "method", "inner", "permutation"), CASES, ids=str)
def test_two_graphs_for_any_number_of_updates(structure, method, inner, permutation):
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    entry = model_zoo.get("mixer")
    model = entry.build().train()
    sparsity = 0.75 if isinstance(structure, NM) else 0.9
    padst_fx.sparsify(model, structure, sparsity, permutation=permutation)
    compiled = torch.compile(model, backend="padst", fullgraph=True, options={"inner": inner})
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    moved = []
    dst = DST(model, optimizer, method, delta_t=5, t_end=10_000,
              callback=lambda update: moved.append(update.moved))  # fmt: skip
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    addresses = {name: tensor.data_ptr() for name, tensor in tensors.items()}
    inputs = entry.inputs()
    updates = 0
    try:
        for step in range(1, 201):
            entry.loss(compiled(*inputs)).backward()
            optimizer.step()
            optimizer.zero_grad()
            updates += dst.step()
            if step == 6:
                torch.compiler.set_stance("fail_on_recompile")
    finally:
        torch.compiler.set_stance("default")
    assert updates == 40
    assert (sum(moved) > 0) == (permutation == "learned")
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    assert {name: tensor.data_ptr() for name, tensor in tensors.items()} == addresses


def test_set_needs_one_graph_only():
    torch._dynamo.reset()
    counters.clear()
    model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 4))
    padst_fx.sparsify(model, "diag", 0.75)
    compiled = torch.compile(
        model, backend="padst", fullgraph=True, options={"inner": "aot_eager"}
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    dst = DST(model, optimizer, "set", delta_t=2, t_end=100)
    for _ in range(10):
        compiled(torch.ones(3, 16)).sum().backward()
        optimizer.step()
        dst.step()
    assert counters["stats"]["unique_graphs"] == 1
