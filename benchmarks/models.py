"""Whole models from their configurations, 90 % sparse but for the head: inference.

ViT-B/16 on one image, one decoded token of GPT-2 small behind 256 others in a static cache, and
its prefill of 512 tokens with the logits of the last. Each eager and compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import padst_fx
from benchmarks import plots
from benchmarks.compiled import compiled
from benchmarks.measured import DENSE, Contestant, measure
from benchmarks.settings import Settings
from benchmarks.structures import MODELS, QUICK_MODELS, SPARSITY, STRUCTURES
from benchmarks.table import Row, Table, noise_note, ratio_cell

DECODE_AFTER = 256
PREFILL = 512
# The first workloads: a prefill is as much like images as like decoding.
QUICK_WORKLOADS = 2
# Of the largest logit, for a compiled model against the dense eager one that does the same.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Workload:
    """`build` makes the dense model, `bind` a call of it that gives logits."""

    name: str
    build: Callable[[], nn.Module]
    bind: Callable[[nn.Module], Callable[..., Tensor]]
    arguments: Callable[[nn.Module], tuple[Any, ...]]
    before: Callable[[tuple[Any, ...]], None] = lambda arguments: None


def vit_b16(layers: int = 12) -> nn.Module:
    """A ViT-B/16 for 1000 classes, fresh weights."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(num_hidden_layers=layers)
    config.num_labels = 1000
    return ViTForImageClassification(config)


def gpt2_small(layers: int = 12) -> nn.Module:
    """A GPT-2 small, fresh weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_layer=layers))


def workloads(layers: int) -> list[Workload]:
    """The three of the table, with models of so many layers."""
    short = "" if layers == 12 else f" (layers: {layers})"
    gpt2 = partial(gpt2_small, layers)
    return [
        Workload(f"ViT-B/16{short}, 1 image", partial(vit_b16, layers), _classify, _one_image),
        Workload(f"GPT-2 small{short}, decode 1 token", gpt2, _decode, _filled_cache, _rewind),
        Workload(f"GPT-2 small{short}, prefill {PREFILL} tokens", gpt2, _prefill, _prompt),
    ]


def _classify(model: nn.Module) -> Callable[..., Tensor]:
    return lambda pixels: model(pixels).logits


def _one_image(model: nn.Module) -> tuple[Any, ...]:
    return (torch.randn(1, 3, 224, 224),)


def _prefill(model: nn.Module) -> Callable[..., Tensor]:
    return lambda tokens: model(tokens, use_cache=False, logits_to_keep=1).logits


def _prompt(model: Any, length: int = PREFILL) -> tuple[Any, ...]:
    return (torch.randint(model.config.vocab_size, (1, length)),)


def _decode(model: nn.Module) -> Callable[..., Tensor]:
    def call(token: Tensor, position: Tensor, cache: Any) -> Tensor:
        return model(token, past_key_values=cache, position_ids=position, logits_to_keep=1).logits

    return call


def _filled_cache(model: Any) -> tuple[Any, ...]:
    from transformers import StaticCache

    cache = StaticCache(config=model.config, max_cache_len=DECODE_AFTER + 64)
    (prompt,) = _prompt(model, DECODE_AFTER)
    model(prompt, past_key_values=cache, logits_to_keep=1)
    return _prompt(model, 1)[0], torch.tensor([[DECODE_AFTER]]), cache


def _rewind(arguments: tuple[Any, ...]) -> None:
    """Let every decoded token be the same one: the cache counts what it was given."""
    for layer in arguments[2].layers:
        layer.cumulative_length.fill_(DECODE_AFTER)


def contestants(workload: Workload, names: list[str], settings: Settings) -> Iterator[Contestant]:
    """Dense, every structure, and some behind a random permutation."""
    dense = workload.build().eval()
    eager = not settings.quick
    yield from _modes(workload, DENSE, dense, dense, "", eager)
    for name in names:
        for permutation in settings.permutations(name):
            model = padst_fx.sparsify(
                deepcopy(dense), STRUCTURES[name], SPARSITY, permutation=permutation
            )
            twin = padst_fx.densify(deepcopy(model))
            label = "" if permutation == "identity" else ", permuted"
            with_eager = eager and permutation == "identity"
            yield from _modes(workload, name + label, model, twin, permutation, with_eager)


def _modes(
    workload: Workload, name: str, model: nn.Module, twin: nn.Module, permutation: str, eager: bool
) -> Iterator[Contestant]:
    """A model eager and compiled; `twin` is a dense one that computes the same."""
    torch.manual_seed(1)
    arguments = workload.arguments(twin)
    workload.before(arguments)
    expected = workload.bind(twin)(*arguments)
    function = workload.bind(model)
    backend = "inductor" if name == DENSE else "padst"
    modes = {"eager": function} if eager else {}
    for mode, form in {**modes, "compiled": compiled(function, backend)}.items():
        call = partial(_call, form, workload.before, arguments)
        check = partial(error_share, expected, call)
        yield Contestant(name, mode, call, check, {"permutation": permutation})


def _call(
    function: Callable[..., Tensor],
    before: Callable[[tuple[Any, ...]], None],
    arguments: tuple[Any, ...],
) -> Tensor:
    before(arguments)
    return function(*arguments)


def error_share(expected: Tensor, call: Callable[[], Tensor]) -> float:
    """The largest error as a share of what is allowed; infinite for NaN."""
    share = (call() - expected).abs().max() / (TOLERANCE * expected.abs().max())
    return float(share.nan_to_num(nan=torch.inf))


@torch.no_grad()
def run(settings: Settings) -> Table:
    """Measure every workload; the first two with `--quick`."""
    names = settings.choose(MODELS, QUICK_MODELS)
    rows: list[Row] = []
    measured = QUICK_WORKLOADS if settings.quick else None
    for workload in workloads(settings.layers)[:measured]:
        entries = list(contestants(workload, names, settings))
        rows += measure(entries, settings.rounds, {"workload": workload.name})
        torch.compiler.reset()
    return Table(
        name="models",
        title="dense time by sparse time, whole models, fp32 (above 1: sparse is faster)",
        rows=rows,
        shown=shown(rows),
        draw=partial(draw, rows),
        notes=[*permutation_notes(rows), noise_note(rows)],
    )


def shown(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """A line per contestant of every workload."""
    columns = ["workload", "model", "mode", "ms", "± ms", "dense / sparse"]
    return columns, [
        [row["workload"], row["structure"], row["mode"], *_milliseconds(row), ratio_cell(row)]
        for row in rows
    ]


def _milliseconds(row: Row) -> tuple[str, str]:
    if row["status"] != "ok":
        return "", ""
    half = (row["high_us"] - row["low_us"]) / 2000
    return f"{row['microseconds'] / 1000:,.2f}", f"{half:.2f}"


def draw(rows: list[Row]) -> Any:
    """Bars of the compiled contestants, a panel per workload."""
    best = [row for row in rows if row["status"] == "ok" and row["mode"] != "eager"]
    panels = [
        (name, [row for row in best if row["workload"] == name and row["structure"] != DENSE])
        for name in dict.fromkeys(row["workload"] for row in best)
    ]
    return plots.bars(panels, "dense time / sparse time, both compiled")


def permutation_notes(rows: list[Row]) -> list[str]:
    """What a random permutation costs against the identity."""
    times = {
        (row["workload"], row["structure"]): row["microseconds"]
        for row in rows
        if row["status"] == "ok" and row["mode"] != "eager"
    }
    return [
        f"{workload}, {name} behind random permutations: {times[workload, name] / plain:.3f} of "
        "the time with identities"
        for (workload, name) in times
        if name.endswith(", permuted")
        and (plain := times.get((workload, name.removesuffix(", permuted"))))
    ]
