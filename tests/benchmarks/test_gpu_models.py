"""Whole models for the GPU benchmarks are checked before they are timed; seen here on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import padst_fx
from benchmarks.gpu_check import WrongResultError
from benchmarks.gpu_models import Workload, classify, decode, gpt2, llama, prepared, train, vit

LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
}
VIT = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "image_size": 32}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128, "n_positions": 64}
WORKLOADS = (
    Workload(
        "images", lambda: vit(**VIT, num_attention_heads=4), lambda model: classify(model, 4), 1.0
    ),
    Workload("training", lambda: gpt2(**GPT2), lambda model: train(model, 2, 32), 1.0),
    Workload("one token", lambda: llama(**LLAMA), lambda model: decode(model, 8), 1.0),
)


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_a_right_model_is_timed_and_a_wrong_one_is_not(
    workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(workload, padst_fx.Block(16), "cpu")
    right = padst_fx.SparseLinear.forward

    def wrong(layer: padst_fx.SparseLinear, x: Tensor) -> Any:
        return 1.3 * right(layer, x)

    monkeypatch.setattr(padst_fx.SparseLinear, "forward", wrong)
    with pytest.raises(WrongResultError, match="off by"):
        prepared(workload, padst_fx.Block(16), "cpu")
