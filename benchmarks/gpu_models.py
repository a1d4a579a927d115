"""`python -m benchmarks.gpu_models`: whole models, dense and 90 % sparse, on this CUDA device.

Fresh weights from the configurations, bfloat16, both sides compiled. Inference of ViT-B/16 and
ViT-H/14 with 256 images and one token of a decoder shaped like Llama 3.1 8B, replayed as CUDA
graphs, and a training step of GPT-2 medium with 8 x 1024 tokens. Before a sparse model is timed it
has to give what a dense model of the same weights gives. Every model of a workload has a process of
its own; they compile at the same time, and then take turns on the device.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor, nn

import padst_fx
from benchmarks import results_file
from benchmarks.gpu_check import WrongResultError
from benchmarks.gpu_device import Times, captured, microseconds, require_cuda, versions

SPARSITY = 0.9
# Of the dense result's norm: what bfloat16 loses on the way through a deep model stays below.
TOLERANCE = 0.05
STRUCTURES: dict[str, padst_fx.Structure] = {
    "Block(64)": padst_fx.Block(64),
    "Diag(width=64)": padst_fx.Diag(width=64),
}
DENSE = "dense"


@dataclass(frozen=True)
class Workload:
    """A model, what is done with it, and the speed-up that the target table asks for."""

    name: str
    build: Callable[[], nn.Module]
    bind: Callable[[nn.Module], Callable[[], Tensor]]
    goal: float
    graphed: bool = False


def vit(**config: Any) -> nn.Module:
    """A vision transformer for 1000 classes."""
    from transformers import ViTConfig, ViTForImageClassification

    made = ViTConfig(**config)
    made.num_labels = 1000
    return ViTForImageClassification(made)


def gpt2(**config: Any) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    made = GPT2Config(**config)
    made.resid_pdrop = made.embd_pdrop = made.attn_pdrop = 0.0
    return GPT2LMHeadModel(made)


def llama(**config: Any) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**config))


def compiled(model: nn.Module, **options: Any) -> Callable[..., Any]:
    """The model under `torch.compile`, a sparse one with this package's backend."""
    sparse = any(isinstance(module, padst_fx.SparseLinear) for module in model.modules())
    return torch.compile(model, backend="padst" if sparse else "inductor", **options)


def classify(model: Any, images: int = 256) -> Callable[[], Tensor]:
    """Logits of ``images`` random images."""
    size = model.config.image_size
    device = next(model.parameters()).device
    pixels = torch.randn(images, 3, size, size, device=device, dtype=torch.bfloat16)
    run = compiled(model, fullgraph=True)

    def call() -> Tensor:
        with torch.no_grad():
            return run(pixels).logits

    return call


def train(model: Any, batch: int = 8, length: int = 1024) -> Callable[[], Tensor]:
    """The first parameter's gradient in one step of forward, backward and AdamW.

    That parameter embeds the tokens, so its gradient has passed through every layer twice.
    """
    first = next(model.parameters())
    device = first.device
    tokens = torch.randint(model.config.vocab_size, (batch, length), device=device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=device.type == "cuda")
    run = compiled(model.train())

    def call() -> Tensor:
        loss: Tensor = run(tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        gradient = first.grad
        assert gradient is not None
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return gradient

    return call


def decode(model: Any, before: int = 256) -> Callable[[], Tensor]:
    """Logits of one token behind ``before`` others in a static cache, rewound before each call."""
    from transformers import StaticCache

    parameter = next(model.parameters())
    cache: Any = StaticCache(config=model.config, max_cache_len=before + 1)
    tokens = torch.randint(model.config.vocab_size, (1, before), device=parameter.device)
    with torch.no_grad():
        model(tokens, past_key_values=cache, use_cache=True)
    last, position = tokens[:, :1], torch.tensor([[before]], device=parameter.device)
    lengths = [layer.cumulative_length for layer in cache.layers]
    filled = [length.clone() for length in lengths]
    run = compiled(model)

    def call() -> Tensor:
        with torch.no_grad():
            torch._foreach_copy_(lengths, filled)
            arguments = {"past_key_values": cache, "position_ids": position, "use_cache": True}
            return run(last, **arguments).logits

    return call


HUGE = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16}
LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
WORKLOADS = (
    Workload("ViT-B/16, 256 images", vit, classify, 1.8, graphed=True),
    Workload(
        "ViT-H/14, 256 images",
        lambda: vit(**HUGE, intermediate_size=5120, patch_size=14),
        classify,
        2.0,
        graphed=True,
    ),
    Workload(
        "GPT-2 medium, training step",
        lambda: gpt2(n_embd=1024, n_layer=24, n_head=16),
        train,
        1.8,
    ),
    Workload("Llama 3.1 8B shape, one token", lambda: llama(**LLAMA), decode, 3.0, graphed=True),
)


def prepared(
    workload: Workload,
    structure: padst_fx.Structure | None,
    device: str = "cuda",
    building: AbstractContextManager[Any] | None = None,
) -> tuple[Callable[[], object], float]:
    """The call to time and the share of weights that projections keep.

    A sparse model's result is compared with a dense model's first. While ``building`` is held a
    second, dense model may be in memory.
    """
    with building or nullcontext():
        torch.manual_seed(0)
        model = built(workload, device)
        if structure is None:
            return _timed(workload, workload.bind(model)), 1.0
        padst_fx.sparsify(model, structure, SPARSITY, permutation="identity", init="random")
        want = expected(workload, model)
        if device == "cuda":
            torch.cuda.empty_cache()
    call = seeded(workload, model)
    error = float((call() - want).float().norm() / want.float().norm())
    if not error <= TOLERANCE:
        raise WrongResultError(
            f"{workload.name} with {structure} is off by {error:.2g} of the dense result's norm, "
            f"allowed {TOLERANCE}"
        )
    return _timed(workload, call), density(model)


def built(workload: Workload, device: str) -> nn.Module:
    """The model in bfloat16, never in more."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return workload.build().to(torch.bfloat16).eval()
    finally:
        torch.set_default_dtype(before)


def density(model: nn.Module) -> float:
    """The share of weights that the sparse projections of a model keep."""
    layers = [m for m in model.modules() if isinstance(m, padst_fx.SparseLinear)]
    kept = sum(layer.values.numel() for layer in layers)
    return kept / sum(layer.out_features * layer.in_features for layer in layers)


def expected(workload: Workload, model: nn.Module) -> Tensor:
    """What a dense model of the same effective weights gives, eager."""
    twin = padst_fx.densify(deepcopy(model))
    with torch.compiler.set_stance("force_eager"):
        return seeded(workload, twin)()


def seeded(workload: Workload, model: nn.Module) -> Callable[[], Tensor]:
    """The workload's call, with the same inputs every time it is bound."""
    torch.manual_seed(1)
    return workload.bind(model)


def _timed(workload: Workload, call: Callable[[], Tensor]) -> Callable[[], object]:
    return captured(call) if workload.graphed else call


def contestant(pipe: Any, building: Any, workload: int, structure: str) -> None:
    """A process: prepare one model, say so, then take a time whenever asked."""
    try:
        call, kept = prepared(WORKLOADS[workload], STRUCTURES.get(structure), building=building)
        microseconds({"it": call}, 3)
    except Exception as error:
        pipe.send(repr(error))
        return
    pipe.send(kept)
    while pipe.recv():
        pipe.send(microseconds({"it": call}, 1)["it"].rounds[0])


class Contestants:
    """The models of a workload, one process each, from the moment they are made."""

    def __init__(self, workload: int, building: Any) -> None:
        self.workload = workload
        self._kept: dict[str, float] = {}
        self._pipes: dict[str, Any] = {}
        for name in (DENSE, *STRUCTURES):
            spawn = get_context("spawn")
            self._pipes[name], other = spawn.Pipe()
            arguments = (other, building, workload, name)
            spawn.Process(target=contestant, args=arguments, daemon=True).start()

    def wait(self) -> None:
        """Until all have compiled and were compared; those that failed are told."""
        answers = {name: pipe.recv() for name, pipe in self._pipes.items()}
        self._kept = {name: kept for name, kept in answers.items() if isinstance(kept, float)}
        for name in answers.keys() - self._kept.keys():
            print(f"{WORKLOADS[self.workload].name}, {name}: {answers[name]}", flush=True)

    def measure(self, rounds: int) -> list[dict[str, Any]]:
        """One row per model that was right; the models take turns."""
        times: dict[str, list[float]] = {name: [] for name in self._kept}
        for name in [*times] * rounds:
            self._pipes[name].send(True)
            times[name].append(self._pipes[name].recv())
        for name in times:
            self._pipes[name].send(False)
        dense = times.get(DENSE, [])
        rows = [(name, self._kept[name], Times(own), dense) for name, own in times.items() if dense]
        return [_row(self.workload, *row) for row in rows]


def _row(workload: int, name: str, kept: float, own: Times, dense: list[float]) -> dict[str, Any]:
    ratios = Times([d / mine for d, mine in zip(dense, own.rounds, strict=True)])
    return {
        "workload": WORKLOADS[workload].name,
        "structure": name,
        "density": round(kept, 4),
        "microseconds": round(own.median, 1),
        "speedup": round(ratios.median, 3),
        "spread": round(ratios.spread, 3),
        "goal": "" if name == DENSE else WORKLOADS[workload].goal,
        "rounds": len(dense),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_models", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--workloads", type=int, nargs="+", default=range(len(WORKLOADS)))
    parser.add_argument(
        "--together", type=int, default=1, help="workloads whose models are in memory at a time"
    )
    options = parser.parse_args()
    require_cuda("python -m benchmarks.gpu_models")
    machine, building = versions(), get_context("spawn").Lock()
    rows: list[dict[str, Any]] = []
    for start in range(0, len(options.workloads), options.together):
        group = options.workloads[start : start + options.together]
        together = [Contestants(workload, building) for workload in group]
        for contestants in together:
            contestants.wait()
        for contestants in together:
            found = contestants.measure(options.rounds)
            rows += [{**row, **machine} for row in found]
            for row in found:
                named = f"{row['workload']:32} {row['structure']:15}"
                print(named, f"{row['speedup']:.2f}x", flush=True)
        results_file.write("gpu_models", rows)
    print(f"written to {results_file.write('gpu_models', rows)}")


if __name__ == "__main__":
    main()
