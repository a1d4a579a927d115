"""What the distributed tests train: ways of wrapping, structures, methods and permutations."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import padst_fx
from padst_fx import DST, NM, Block, SoftPermutation
from padst_fx.sharding import whole

STEPS = 50
FEWER_STEPS = 10
DELTA_T = 2
BATCH = 128
FEATURES, HIDDEN, CLASSES = 16, 32, 4
HARDEN_AT = 6
OVERFLOW_AT = 3

STRUCTURES = {
    "diag": "diag",
    "wide diag": padst_fx.Diag(width=4),
    "block": Block(4),
    "nm": NM(2, 4),
    "unstructured": "unstructured",
}


@dataclass(frozen=True)
class Case:
    """A way of training: how the model is wrapped, its structure, method and permutations."""

    wrapper: str
    structure: str
    method: str
    permutation: str = "random"

    def __str__(self) -> str:
        return f"{self.wrapper}, {self.structure}, {self.method}, {self.permutation}"


# Every method and every kind of permutation that moves, in one of the wrappers for many steps.
LONG = [
    Case("ddp", "diag", "set", "soft"),
    Case("ddp", "block", "rigl"),
    Case("fsdp", "nm", "rigl_exact"),
    Case("fsdp", "block", "mest", "learned"),
    Case("ddp", "diag", "dynadiag"),
]
# In the other one for few.
SHORT = [
    Case("fsdp", "diag", "set", "soft"),
    Case("fsdp", "block", "rigl"),
    Case("ddp", "nm", "rigl_exact"),
    Case("ddp", "block", "mest", "learned"),
    Case("fsdp", "diag", "dynadiag"),
]
MORE_METHODS = [
    ("diag", "set"),
    ("unstructured", "mest"),
    ("unstructured", "rigl", "learned"),
    ("wide diag", "rigl_exact"),
    ("diag", "rigl"),
    ("nm", "rigl"),
    ("unstructured", "rigl_exact"),
    ("diag", "rigl_exact", "learned"),
    ("diag", "dynadiag", "learned"),
    ("block", "rigl", "soft"),
    ("nm", "set", "learned"),
    ("unstructured", "mest", "soft"),
    ("block", "rigl_exact", "soft"),
    ("diag", "dynadiag", "soft"),
]
FOUR = LONG
VARIANTS = [
    *(Case("ddp", *method) for method in MORE_METHODS),
    Case("fsdp", "unstructured", "mest"),
    Case("fsdp", "diag", "set"),
    Case("fsdp", "unstructured", "set", "learned"),
    Case("fsdp", "diag", "mest", "soft"),
    Case("fsdp", "block", "rigl", "learned"),
    Case("fsdp", "diag", "rigl_exact", "learned"),
    Case("fsdp", "nm", "rigl_exact", "soft"),
    Case("fsdp", "diag", "dynadiag", "soft"),
    Case("ddp, static graph, accumulation", "diag", "mest", "learned"),
    Case("ddp, static graph, accumulation", "block", "rigl_exact"),
    Case("ddp, static graph, accumulation", "diag", "dynadiag"),
    Case("ddp, rank 0 alone reaches a layer", "nm", "rigl"),
    Case("ddp, rank 0 alone reaches a layer", "diag", "dynadiag", "learned"),
    Case("ddp, compiled", "diag", "rigl", "learned"),
    Case("fsdp, accumulation", "block", "rigl_exact", "learned"),
    Case("fsdp, kept unsharded", "diag", "mest", "learned"),
    Case("fsdp, activation checkpointing", "nm", "rigl"),
    Case("fsdp, activation checkpointing, kept unsharded", "diag", "rigl_exact"),
    Case("fsdp, bfloat16", "diag", "dynadiag", "learned"),
    Case("fsdp, bfloat16", "block", "rigl", "soft"),
    Case("ddp, ties", "diag", "rigl", "learned"),
    Case("ddp, ties", "nm", "rigl"),
    Case("fsdp, ties", "unstructured", "rigl_exact"),
    Case("ddp, others decide otherwise", "diag", "set", "learned"),
    Case("ddp, others decide otherwise", "diag", "dynadiag", "soft"),
    Case("fsdp, others decide otherwise", "unstructured", "rigl_exact", "soft"),
    Case("fsdp, others decide otherwise", "nm", "rigl", "learned"),
]
CASES = [*LONG, *SHORT, *VARIANTS]
# Trainings with an overflow in a gradient that only `DST` averages.
OVERFLOWS = [Case("ddp", "diag", "set", "soft"), Case("ddp", "diag", "dynadiag")]
OTHERWISE = [case for case in CASES if "otherwise" in case.wrapper]
# What two ranks must do just as one rank with the whole batch does.
LIKE_ONE = [
    case
    for case in CASES
    if case.method in ("set", "mest", "rigl_exact")
    and "bfloat16" not in case.wrapper
    and "reaches" not in case.wrapper
]


class Net(nn.Module):
    """Three projections; the middle one may be recomputed in backward, or passed over."""

    def __init__(self, checkpointed: bool = False, reached: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, HIDDEN)
        self.middle = nn.Linear(HIDDEN, HIDDEN)
        self.last = nn.Linear(HIDDEN, FEATURES)
        self.head = nn.Linear(FEATURES, CLASSES)
        self.checkpointed = checkpointed
        self.reached = reached

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        if self.checkpointed:
            x = checkpoint(self.middle, x, use_reentrant=False)
        elif self.reached:
            x = self.middle(x)
        return self.head(self.last(x.relu()))


def make(case: Case, rank: int) -> nn.Module:
    torch.manual_seed(0)
    model = Net("checkpointing" in case.wrapper, rank == 0 or "reaches" not in case.wrapper)
    if "bfloat16" not in case.wrapper:
        model = model.double()
    structure = STRUCTURES[case.structure]
    sparsity = 0.5 if case.structure == "nm" else 0.75
    names = ["first", "middle", "last"]
    padst_fx.sparsify(model, structure, sparsity, permutation=case.permutation, include=names)
    if "ties" in case.wrapper:
        for parameter in model.parameters():
            nn.init.constant_(parameter, 0.125)
    return model


def wrap(case: Case, model: nn.Module) -> nn.Module:
    """The model as the case's ranks run it."""
    if case.wrapper.startswith("ddp"):
        run = DistributedDataParallel(
            model,
            static_graph="static" in case.wrapper,
            find_unused_parameters="reaches" in case.wrapper,
        )
        if "compiled" in case.wrapper:
            return torch.compile(run, backend="padst", options={"inner": "aot_eager"})
        return run
    settings: dict[str, Any] = {
        "mesh": init_device_mesh("cpu", (dist.get_world_size(),)),
        "reshard_after_forward": "unsharded" not in case.wrapper,
        "ignored_params": padst_fx.replicated_parameters(model),
    }
    if "bfloat16" in case.wrapper:
        settings["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    fully_shard(model.first, **settings)
    return fully_shard(model, **settings)


def batches(case: Case, step: int, rank: int, world: int) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """This rank's micro-batches of a step, and whether each is the last; the target is linear, so
    that permutations have something to learn."""
    teacher = torch.randn(
        FEATURES, CLASSES, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, FEATURES, generator=generator, dtype=torch.float64)
    y = x @ teacher
    if "ties" in case.wrapper:
        x, y = torch.ones_like(x), torch.ones_like(y)
    if "bfloat16" in case.wrapper:
        x, y = x.float(), y.float()
    mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    parts = 2 if "accumulation" in case.wrapper else 1
    pairs = list(zip(x[mine].chunk(parts), y[mine].chunk(parts), strict=True))
    for number, (a, b) in enumerate(pairs, 1):
        yield a, b, number == parts


def backward(case: Case, run: nn.Module, dst: DST, step: int, rank: int, world: int) -> None:
    """The gradients of a step, micro-batch by micro-batch; only the last one is reduced.

    In the first step of a static graph all are: `DistributedDataParallel` (of torch 2.13) needs to
    have seen the graph outside `no_sync`.
    """
    for x, y, last in batches(case, step, rank, world):
        silent = nullcontext()
        first_of_static = "static" in case.wrapper and step == 1
        if isinstance(run, DistributedDataParallel) and not last and not first_of_static:
            silent = run.no_sync()
        elif isinstance(run, FSDPModule):
            run.set_requires_gradient_sync(last)
        with silent:
            loss = nn.functional.mse_loss(run(x).to(y.dtype), y) + dst.penalty()
            (loss / (2 if "accumulation" in case.wrapper else 1)).backward()


def hashed(model: nn.Module, *kinds: str) -> str:
    """A hash of the tensors of these names in all layers."""
    state = sorted(
        (name, tensor)
        for name, tensor in model.state_dict().items()
        if name.rpartition(".")[2] in kinds
    )
    digest = hashlib.sha256()
    for name, tensor in state:
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def addresses(model: nn.Module) -> list[tuple[str, int]]:
    """Where parameters (of sharded ones this rank's part) and buffers lie."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [
        (name, (t.to_local() if hasattr(t, "to_local") else t).data_ptr())
        for name, t in tensors
        if "soft_perm" not in name
    ]


class Training:
    """A case's model, optimizer and DST on one rank."""

    def __init__(self, case: Case, rank: int = 0, world: int = 1) -> None:
        self.case, self.rank, self.world = case, rank, world
        self.model = make(case, rank)
        self.run = wrap(case, self.model) if world > 1 else self.model
        rate = 0.0 if "ties" in case.wrapper else 0.02
        self.optimizer = torch.optim.Adam(self.model.parameters(), rate)
        soft = None
        if case.permutation == "soft":
            # Allowed to harden at step 4 already, which none does below a threshold of zero.
            soft = SoftPermutation(harden_at=HARDEN_AT, warmup=0.25, threshold=0.0)
        settings = {"delta_t": DELTA_T, "t_end": 1000, "soft": soft}
        self.dst = DST(self.model, self.optimizer, case.method, **settings)

    def backward(self, step: int) -> None:
        backward(self.case, self.run, self.dst, step, self.rank, self.world)

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()
        if "unsharded" in self.case.wrapper:
            # An evaluation leaves whole parameters in place of the sharded ones.
            with torch.no_grad():
                self.run(next(batches(self.case, 0, self.rank, self.world))[0])
        self.dst.step()

    def state(self) -> dict[str, Tensor]:
        """The model's state, whole."""
        return {n: whole(t).detach().clone() for n, t in self.model.state_dict().items()}

    def everything(self) -> dict[str, Any]:
        """All that decides how the training goes on, whole."""
        slots = {
            name: {key: whole(slot).clone() for key, slot in self.optimizer.state[p].items()}
            for name, p in self.model.named_parameters()
            if p in self.optimizer.state
        }
        dst = io.BytesIO()
        torch.save(self.dst.state_dict(), dst)
        dst.seek(0)
        return {"model": self.state(), "slots": slots, "dst": torch.load(dst)}


@contextmanager
def deciding(case: Case, rank: int) -> Iterator[set[str]]:
    """Where others than the first rank decide otherwise, what each decides of itself is something
    else while this lasts; yields the functions of which that was so."""
    differing: set[str] = set()

    def otherwise(place: str, change: Callable[..., Any]) -> Any:
        real = resolve_name(f"padst_fx.dst.{place}")

        def decide(*arguments: Any) -> Any:
            differing.add(place)
            return change(real, *arguments)

        return mock.patch(f"padst_fx.dst.{place}", decide)

    def by_chance(real, units, drop, candidates, growth, count):
        chance = torch.where(growth < 0, growth, torch.rand_like(growth))
        return real(units, torch.rand_like(drop), candidates, chance, count)

    with ExitStack() as stack:
        if "otherwise" in case.wrapper and rank > 0:
            for patch in (
                otherwise("manager.choose_units", by_chance),
                otherwise(
                    "learned_permutation.choose_features", lambda real, *seen: real(*seen).roll(1)
                ),
                otherwise("hardening.nearest_permutation", lambda real, m: real(m).roll(1)),
                # Below any threshold, so that a layer hardens as soon as one may.
                otherwise("hardening._per_line", lambda real, m: real(m) - 1),
            ):
                stack.enter_context(patch)
        yield differing


def steps(case: Case) -> int:
    """How long a case is trained."""
    return STEPS if case in LONG else FEWER_STEPS


def train(case: Case, rank: int = 0, world: int = 1) -> dict[str, Any]:
    """Units and permutations and soft matrices after every step, as hashes; the last state, whole;
    whether permutations by index moved, whether storage stayed in place, and what this rank would
    have decided otherwise."""
    training = Training(case, rank, world)
    started = hashed(training.model, "perm")
    otherwise: set[str] = set()
    topologies, soft, before = [], [], addresses(training.model)
    for step in range(1, steps(case) + 1):
        training.backward(step)
        with deciding(case, rank) as differing:
            training.step()
        otherwise |= differing
        topologies.append(hashed(training.model, "index", "perm"))
        soft.append(hashed(training.model, "soft_perm"))
    update = training.dst.last_update
    return {
        "topologies": topologies,
        "soft": soft,
        "state": training.state(),
        "moved": case.permutation != "soft" and hashed(training.model, "perm") != started,
        "in place": before == addresses(training.model),
        "skipped": list(update.skipped),
        "otherwise": sorted(otherwise),
    }


def overflowing(case: Case, rank: int) -> dict[str, Any]:
    """Gradient norms, loss scales and counted steps after every step, and the last state, with one
    overflow on the second of two ranks, in a gradient that `DistributedDataParallel` does not
    know."""
    training = Training(case, rank, 2)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    last = training.model.last
    added = last.alpha if last.soft_perm is None else last.soft_perm
    norms, scales, counts = [], [], []
    for step in range(1, FEWER_STEPS + 1):
        broken = step == OVERFLOW_AT and rank == 1
        hook = added.register_hook(lambda g, factor=torch.inf if broken else 1.0: g * factor)
        [(x, y, _)] = batches(case, step, rank, 2)
        loss = nn.functional.mse_loss(training.run(x), y) + training.dst.penalty()
        scaler.scale(loss).backward()
        hook.remove()
        scaler.unscale_(training.optimizer)
        norm = nn.utils.clip_grad_norm_(training.model.parameters(), 0.1)
        scaler.step(training.optimizer)
        scaler.update()
        training.optimizer.zero_grad()
        training.dst.step()
        norms.append(norm.nan_to_num())
        scales.append(scaler.get_scale())
        counts.append(training.dst.steps)
    return {"norms": norms, "scales": scales, "counts": counts, "state": training.state()}


def told(seed: int, value: float) -> tuple[str, list[str]]:
    """What a rank is told that trains a model of its own, unwrapped: an error, and warnings."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(FEATURES, HIDDEN))
    padst_fx.sparsify(model, "diag", 0.75, permutation="random", include=["0"])
    nn.init.constant_(model[0].values, value)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    dst = DST(model, optimizer, "set", delta_t=1)
    warnings: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())
    logging.getLogger("padst_fx").addHandler(handler)
    optimizer.step()
    try:
        dst.step()
    except RuntimeError as error:
        return str(error), warnings
    finally:
        logging.getLogger("padst_fx").removeHandler(handler)
    return "", warnings
