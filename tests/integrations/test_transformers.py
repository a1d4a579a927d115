"""The Trainer of transformers with a DSTCallback: like a loop by hand, and like one that never
stopped."""

from __future__ import annotations

import gc
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType
from integration_cases import CASES, CLIPPED, settings_of, train_by_hand
from ranks import on_two_ranks
from safetensors.torch import load_file
from same import assert_same
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

import padst_fx
from padst_fx.integrations.transformers import DSTCallback

FEATURES, SAMPLES, BATCH, ACCUMULATED = 16, 64, 4, 2
STEPS, SAVE = 12, 5
LEARNING_RATE = 1e-2
RANKED = ("rigl learned", "dynadiag", "rigl soft")


@pytest.fixture(autouse=True, scope="module")
def little_to_collect():
    """Accelerate collects garbage before every training: spare it all that was imported."""
    gc.freeze()
    yield
    gc.unfreeze()


class Regression(nn.Module):
    """Asks for no sum of items, so that the Trainer divides by the number of micro-batches."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Linear(FEATURES, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, FEATURES),
            nn.Linear(FEATURES, 4),
        )

    def forward(self, x, labels):
        return {"loss": nn.functional.mse_loss(self.inner(x), labels)}


class Listener(TrainerCallback):
    """A logger as the Trainer's own: among the first callbacks."""

    def __init__(self) -> None:
        self.logs: list[tuple[int, dict[str, float]]] = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append((state.global_step, dict(logs)))


def dataset():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(SAMPLES, FEATURES, generator=generator)
    return [{"x": row, "labels": row[:4].flip(0)} for row in x]


def sparse_model(case):
    structure, _, permutation = CASES[case]
    torch.manual_seed(0)
    return padst_fx.sparsify(Regression(), structure, 0.75, permutation=permutation)


def trainer_of(folder, model, callbacks=(), **arguments):
    settings = dict(
        max_steps=STEPS, per_device_train_batch_size=BATCH, learning_rate=LEARNING_RATE,
        gradient_accumulation_steps=ACCUMULATED, save_steps=SAVE, logging_steps=1, max_grad_norm=0,
        train_sampling_strategy="sequential", report_to=[], use_cpu=True, disable_tqdm=True,
    )
    args = TrainingArguments(str(folder), **{**settings, **arguments})
    data = dataset()
    trainer = Trainer(
        model, args, train_dataset=data, eval_dataset=data, callbacks=list(callbacks)
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def managed(folder, case, **arguments):
    trainer = trainer_of(folder, sparse_model(case), **arguments)
    callback = DSTCallback(trainer, **settings_of(case))
    trainer.add_callback(callback)
    return trainer, callback


def seen(trainer, callback):
    """Everything that a training leaves, but times."""
    history = [
        {name: value for name, value in entry.items() if "runtime" not in name}
        for entry in trainer.state.log_history[:-1]
    ]
    return {
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "dst": callback.dst.state_dict(),
        "history": history,
    }


@pytest.fixture(scope="module", params=CASES)
def trained(request, tmp_path_factory):
    """A case, its folder of checkpoints, and what its training left."""
    folder = tmp_path_factory.mktemp("whole")
    trainer, callback = managed(folder, request.param, train_sampling_strategy="random")
    trainer.train()
    return request.param, folder, seen(trainer, callback)


def test_going_on_is_not_having_stopped(trained, tmp_path):
    case, folder, end = trained
    assert end["dst"]["steps"] == STEPS
    for step in (SAVE, 2 * SAVE):
        trainer, callback = managed(tmp_path, case, train_sampling_strategy="random")
        trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
        assert_same(seen(trainer, callback), end)


@pytest.mark.parametrize("case", ["rigl learned", "mest block", "dynadiag", "rigl soft"])
def test_it_trains_as_a_loop_by_hand(case, tmp_path):
    trainer, callback = managed(tmp_path, case, save_strategy="no", max_grad_norm=CLIPPED)
    trainer.model.inner[2].p = 0
    trainer.train()
    model = sparse_model(case)
    model.inner[2].p = 0
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0)
    dst = padst_fx.DST(model, optimizer, t_end=9, **settings_of(case))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    batches = list(torch.utils.data.DataLoader(dataset(), BATCH))
    train_by_hand(
        model, optimizer, dst, batches, lambda batch: model(**batch)["loss"], STEPS, ACCUMULATED,
        after=scheduler.step,
    )  # fmt: skip
    found = trainer.model.state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found[name], tensor)
    assert dst.exploration == callback.dst.exploration
    assert dst.exploration > 0.25


def test_logs_reach_every_logger_and_the_history(tmp_path):
    listener = Listener()
    trainer = trainer_of(tmp_path, sparse_model("rigl learned"), [listener], save_strategy="no")
    callback = DSTCallback(trainer, **settings_of("rigl learned"))
    trainer.add_callback(callback)
    trainer.train()
    (first,) = (logs for step, logs in listener.logs if step == 0)
    assert first["sparsity/inner.0/sparsity"] == 0.75
    assert first["sparsity/exploration"] == 0.25
    updates = {step: logs for step, logs in listener.logs if step and "sparsity/grown" in logs}
    assert list(updates) == [2, 4, 6, 8]
    last = callback.dst.last_update
    assert updates[8]["sparsity/grown"] == last.grown
    assert updates[8]["sparsity/exploration"] == callback.dst.exploration
    assert updates[8]["sparsity/inner.3/exploration"] == last.layers[1].exploration
    for moved in last.permutations:
        assert updates[8][f"sparsity/{moved.name}/permutation_change"] == moved.change_rate
    losses = [step for step, logs in listener.logs if "loss" in logs]
    assert losses == list(range(1, STEPS + 1))
    history = [entry for entry in trainer.state.log_history if "sparsity/grown" in entry]
    assert [entry["step"] for entry in history] == list(updates)


def test_totals_only(tmp_path):
    listener = Listener()
    trainer = trainer_of(tmp_path, sparse_model("rigl soft"), [listener], save_strategy="no")
    trainer.add_callback(DSTCallback(trainer, layers=False, **settings_of("rigl soft")))
    trainer.train()
    names = {name for _, logs in listener.logs for name in logs if name.startswith("sparsity/")}
    kinds = {"exploration", "drop_fraction", "grown", "permutation_penalty"}
    assert names == {f"sparsity/{kind}" for kind in (*kinds, "permutations_hardened")}


def test_the_best_model_has_its_own_topology(tmp_path):
    trainer, _ = managed(
        tmp_path,
        "rigl learned",
        eval_strategy="steps",
        eval_steps=SAVE,
        metric_for_best_model="loss",
        greater_is_better=True,
        load_best_model_at_end=True,
    )
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.name == f"checkpoint-{SAVE}"
    assert_same(dict(trainer.model.state_dict()), load_file(best / "model.safetensors"))


def test_a_pretrained_model_is_saved_and_goes_on(tmp_path):
    """`save_pretrained`, tied embeddings, mixed precision."""
    folder, ends = tmp_path / "whole", []
    for resume in (None, str(folder / "checkpoint-4")):
        torch.manual_seed(0)
        config = transformers.GPT2Config(
            vocab_size=32, n_positions=8, n_embd=16, n_layer=1, n_head=2, bos_token_id=0,
            eos_token_id=0,
        )
        model = transformers.GPT2LMHeadModel(config)
        padst_fx.sparsify(model, "diag", 0.75, permutation="learned")
        trainer = trainer_of(folder, model, max_steps=8, save_steps=4, bf16=True)
        tokens = torch.arange(SAMPLES * 8).view(-1, 8) * 7 % 32
        trainer.train_dataset = [{"input_ids": row, "labels": row} for row in tokens]
        callback = DSTCallback(trainer, delta_t=2)
        trainer.add_callback(callback)
        trainer.train(resume_from_checkpoint=resume)
        ends.append(seen(trainer, callback))
    assert_same(ends[1], ends[0])


def test_a_model_compiled_in_place_keeps_its_two_graphs(tmp_path):
    model, graphs = sparse_model("rigl learned"), CompileCounterWithBackend("aot_eager")
    model.compile(backend=graphs, fullgraph=True)
    trainer = trainer_of(tmp_path, model)
    callback = DSTCallback(trainer, **settings_of("rigl learned"))
    trainer.add_callback(callback)
    trainer.train()
    assert callback.dst.exploration > 0.25
    assert graphs.frame_count == 2


def test_backends_come_by_compiling_in_place(tmp_path):
    """Accelerate has a closed list of backends, so the Trainer's own argument refuses others."""
    with pytest.raises(ValueError, match="PADST"):
        trainer_of(tmp_path, sparse_model("set random"), torch_compile_backend="padst")


def test_training_again_starts_anew(tmp_path):
    trainer, callback = managed(tmp_path, "rigl learned", save_strategy="no")
    trainer.train()
    first = callback.dst
    trainer.train()
    assert callback.dst is not first
    assert callback.dst.steps == STEPS
    trainer, callback = managed(tmp_path, "dynadiag", save_strategy="no")
    trainer.train()
    with pytest.raises(ValueError, match="a new DSTCallback for another training"):
        trainer.train()


def test_epochs_are_counted_in_steps(tmp_path):
    # Three batches to a step: 16 batches make 6 steps an epoch, the last of a single batch.
    trainer, callback = managed(
        tmp_path, "set random", max_steps=-1, num_train_epochs=2.5, gradient_accumulation_steps=3,
        save_strategy="no",
    )
    before = callback.dst
    assert before.t_end == 11  # three quarters of 15
    trainer.train()
    assert trainer.state.max_steps == callback.dst.steps == 15
    assert callback.dst is before


def test_steps_nobody_knows_are_asked_for(tmp_path):
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from dataset()

    trainer = trainer_of(tmp_path, sparse_model("set random"), max_steps=-1)
    trainer.train_dataset = Endless()
    with pytest.raises(ValueError, match="give t_end as a number of steps"):
        DSTCallback(trainer)
    assert DSTCallback(trainer, t_end=200).dst.t_end == 200


def change(folder, edit):
    path = folder / "trainer_state.json"
    state = json.loads(path.read_text())
    edit(state["stateful_callbacks"])
    path.write_text(json.dumps(state))


def damage(callbacks):
    saved = callbacks["DSTCallback"]["attributes"]["dst"]
    saved["tensors"] = saved["tensors"][: len(saved["tensors"]) // 8 * 4]


def other_method(callbacks):
    pairs = callbacks["DSTCallback"]["attributes"]["dst"]["form"]["dict"]
    pairs[[name for name, _ in pairs].index("method")][1] = "set"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of the case "rigl learned"."""
    folder = tmp_path_factory.mktemp("saved")
    managed(folder, "rigl learned", max_steps=SAVE)[0].train()
    return folder / f"checkpoint-{SAVE}"


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda callbacks: callbacks.pop("DSTCallback"), "no state of a DST"),
        (lambda callbacks: callbacks["DSTCallback"].pop("attributes"), "no state of a DST"),
        (damage, "damaged"),
        (other_method, "does not fit: the state is of method 'set'"),
    ],
)
def test_a_checkpoint_without_a_fitting_state_is_refused(saved, tmp_path, edit, told):
    copied = Path(shutil.copytree(saved, tmp_path / "checkpoint-5"))
    change(copied, edit)
    trainer, callback = managed(tmp_path, "rigl learned")
    before = callback.dst.state_dict()
    with pytest.raises(ValueError, match=told):
        trainer.train(resume_from_checkpoint=str(copied))
    assert_same(callback.dst.state_dict(), before)


def test_a_dense_model_is_told_to_be_sparsified(tmp_path):
    with pytest.raises(ValueError, match=r"call padst_fx\.sparsify"):
        DSTCallback(trainer_of(tmp_path, Regression()))


def test_an_optimizer_of_the_dense_model_is_refused(tmp_path):
    model = Regression()
    optimizer = torch.optim.AdamW(model.parameters())
    padst_fx.sparsify(model, "diag", 0.75)
    trainer = Trainer(model, trainer_of(tmp_path, model).args, optimizers=(optimizer, None))
    with pytest.raises(ValueError, match="build it after sparsify"):
        DSTCallback(trainer)


def test_a_scheduler_that_does_not_know_added_parameters_is_refused(tmp_path):
    model = sparse_model("dynadiag")
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    args = trainer_of(tmp_path, model).args
    with pytest.raises(ValueError, match="Let the Trainer build it"):
        DSTCallback(Trainer(model, args, optimizers=(optimizer, scheduler)), "dynadiag")
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"t_end": 1.5}, "a share of them in"),
        ({"method": "nearly"}, "unknown method 'nearly'"),
        ({"delta_t": 0}, "delta_t must be a positive"),
    ],
)
def test_wrong_settings_are_refused_at_once(tmp_path, arguments, told):
    with pytest.raises(ValueError, match=told):
        DSTCallback(trainer_of(tmp_path, sparse_model("set random")), **arguments)


def test_a_training_too_short_for_updates_is_told_of(tmp_path):
    with pytest.warns(UserWarning, match="masks will never change"):
        DSTCallback(trainer_of(tmp_path, sparse_model("set random")))


def test_trainers_that_cannot_be_served_are_refused(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path, sparse_model("set random"))
    trainer.model_init = Regression
    with pytest.raises(ValueError, match="model_init"):
        DSTCallback(trainer)
    trainer.model_init = None
    trainer.args._n_gpu = 2
    with pytest.raises(ValueError, match="DataParallel on 2 GPUs"):
        DSTCallback(trainer)
    trainer.args._n_gpu = 0
    trainer.args.restore_callback_states_from_checkpoint = True
    with pytest.raises(ValueError, match="Leave it False"):
        DSTCallback(trainer)
    trainer.args.restore_callback_states_from_checkpoint = False
    monkeypatch.setattr(type(trainer.accelerator), "distributed_type", DistributedType.FSDP)
    with pytest.raises(ValueError, match="does not train under FSDP"):
        DSTCallback(trainer)
    assert trainer.optimizer is None


def rank_trains(rank, folder):
    """A training of two processes, then the rest of it from its checkpoint, in each case."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    for case in RANKED:
        saved = folder / case
        whole, callback = managed(saved, case, ddp_backend="gloo")
        assert whole.args.world_size == 2
        assert isinstance(callback.dst, padst_fx.DST)
        whole.train()
        end = seen(whole, callback)
        rest, again = managed(folder / "rest", case, ddp_backend="gloo")
        rest.train(resume_from_checkpoint=str(saved / f"checkpoint-{SAVE}"))
        assert_same(seen(rest, again), end)
        torch.save(end, folder / f"{case} {rank}.pt")


def test_two_processes_stay_alike_and_go_on(tmp_path):
    on_two_ranks(rank_trains, tmp_path)
    for case in RANKED:
        first, second = (
            torch.load(tmp_path / f"{case} {rank}.pt", weights_only=True) for rank in range(2)
        )
        assert first["dst"]["steps"] == STEPS
        assert_same(second["model"], first["model"])
        assert_same(second["optimizer"], first["optimizer"])
        assert_same(second["dst"], first["dst"])
        names = os.listdir(tmp_path / case / f"checkpoint-{SAVE}")
        assert sorted(n for n in names if "rng" in n) == ["rng_state_0.pth", "rng_state_1.pth"]
