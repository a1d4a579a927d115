"""`python -m benchmarks.gpu_models`: whole models, dense and 90 % sparse, on this CUDA device.

Fresh weights from the configurations, bfloat16, both sides compiled. Inference of ViT-B/16 and
ViT-H/14 with 256 images, a training step of GPT-2 medium with 8 x 1024 tokens, and one token of a
decoder shaped like Llama 3.1 8B, replayed as a CUDA graph. Before a sparse model is timed it has to
give what a dense model of the same weights gives.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import padst_fx
from benchmarks import results_file
from benchmarks.gpu_check import WrongResultError
from benchmarks.gpu_device import captured, microseconds, require_cuda, versions

SPARSITY = 0.9
# Of the dense result's norm: what bfloat16 loses on the way through a deep model stays below.
TOLERANCE = 0.05
STRUCTURES: dict[str, padst_fx.Structure] = {
    "Block(64)": padst_fx.Block(64),
    "Diag(width=64)": padst_fx.Diag(width=64),
    "Diag(width=16)": padst_fx.Diag(width=16),
    "Diag()": padst_fx.Diag(),
}


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

    return GPT2LMHeadModel(GPT2Config(**config))


def llama(**config: Any) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**config))


def classify(model: Any, images: int = 256) -> Callable[[], Tensor]:
    """Logits of ``images`` random images."""
    size = model.config.image_size
    device = next(model.parameters()).device
    pixels = torch.randn(images, 3, size, size, device=device, dtype=torch.bfloat16)
    run = torch.compile(model, fullgraph=True)

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
    run = torch.compile(model.train())

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
    run = torch.compile(model)

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
    Workload("ViT-B/16, 256 images", vit, classify, 1.8),
    Workload(
        "ViT-H/14, 256 images",
        lambda: vit(**HUGE, intermediate_size=5120, patch_size=14),
        classify,
        2.0,
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
    workload: Workload, structure: padst_fx.Structure | None, device: str = "cuda"
) -> Callable[[], object]:
    """The call to time; a sparse model's is compared with a dense model's first."""
    torch.manual_seed(0)
    with torch.device(device):
        model = workload.build().to(torch.bfloat16).eval()
    if structure is None:
        return _timed(workload, workload.bind(model))
    padst_fx.sparsify(model, structure, SPARSITY, permutation="identity", init="random")
    want = expected(workload, model)
    call = seeded(workload, model)
    error = float((call() - want).float().norm() / want.float().norm())
    if not error <= TOLERANCE:
        raise WrongResultError(
            f"{workload.name} with {structure} is off by {error:.2g} of the dense result's norm, "
            f"allowed {TOLERANCE}"
        )
    return _timed(workload, call)


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


def measure(workload: Workload, rounds: int) -> list[dict[str, Any]]:
    """One row per structure; one model at a time is on the device."""
    times: dict[str, float] = {}
    for name, structure in ({"dense": None} | STRUCTURES).items():
        torch.compiler.reset()
        torch.cuda.empty_cache()
        times[name] = microseconds({"it": prepared(workload, structure)}, rounds)["it"]
    return [
        {
            "workload": workload.name,
            "structure": name,
            "microseconds": round(own, 1),
            "speedup": round(times["dense"] / own, 3),
            "goal": "" if name == "dense" else workload.goal,
            "rounds": rounds,
        }
        for name, own in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_models", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    require_cuda("python -m benchmarks.gpu_models")
    machine = versions()
    rows: list[dict[str, Any]] = []
    for workload in WORKLOADS:
        for row in measure(workload, rounds):
            rows.append({**row, **machine})
            print(f"{row['workload']:32} {row['structure']:15} {row['speedup']:.2f}x", flush=True)
    print(f"written to {results_file.write('gpu_models', rows)}")


if __name__ == "__main__":
    main()
