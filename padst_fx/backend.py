"""The `torch.compile` backend "padst": Inductor (or a simpler back half) behind our graph passes.

PyTorch finds it through the entry point group `torch_dynamo_backends`; decorating it with
`register_backend` as well would be a duplicate name.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_origin

import torch

if TYPE_CHECKING:
    from torch._inductor.custom_graph_pass import CustomGraphPass

    from padst_fx.passes import PassManager
    from padst_fx.structures import Structure

log = logging.getLogger(__name__)

INNER = ("inductor", "aot_eager", "eager")


def padst(
    gm: torch.fx.GraphModule,
    example_inputs: list[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """Compile a Dynamo graph: AOTAutograd, the passes of `padst_fx.passes`, then code.

    `mode` is one of `torch.compile`'s for Inductor. `options` takes every `torch._inductor`
    option, and:

    - `inner`: what follows the passes. "inductor" (default); "aot_eager", the rewritten forward
      and backward graphs run eagerly; "eager", the untouched Dynamo graph run eagerly.
    - `fuse_scatter`, `fuse_gather`, `fuse_bias`, `fuse_activation` (True): switch a pass off.
    - `strict` (False): raise when a requested fusion matched nothing in the forward graph. A
      fusion is requested by setting it to True by name; if none is, one match of any is enough.
    - `structure`, `sparsity`: sparsify the linear projections of a dense model, once, for
      inference (see `padst_fx.one_shot`).

    Raises ValueError or TypeError for an unknown option or a bad value, before anything else.
    """
    settings = read_options(mode, options)
    if settings.structure is None:
        return _compile(gm, example_inputs, settings)
    from padst_fx.one_shot import compile_one_shot

    def compile_sparse(sparse: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        return _compile(sparse, inputs, settings)

    return compile_one_shot(
        gm, example_inputs, settings.structure, settings.sparsity, compile_sparse
    )


@dataclass(frozen=True)
class Settings:
    """The options of one compile, checked. `fusions` holds the switches set by name."""

    inner: str = "inductor"
    strict: bool = False
    fusions: dict[str, bool] = field(default_factory=dict)
    structure: Structure | None = None
    sparsity: float | None = None
    inductor: dict[str, Any] = field(default_factory=dict)


def read_options(mode: str | None, options: Mapping[str, Any] | None) -> Settings:
    """Sort the options into ours and Inductor's, and check all of them.

    Raises ValueError for an unknown key or value, TypeError for a value of the wrong type,
    RuntimeError (from torch) for an unknown mode.
    """
    from torch._inductor import config, list_mode_options

    from padst_fx.passes import PASS_NAMES

    own = ("inner", "strict", *PASS_NAMES, "structure", "sparsity")
    given = {str(key): value for key, value in (options or {}).items()}
    known = config.get_config_copy()
    inductor = {key.replace("-", "_"): value for key, value in given.items() if key not in own}
    for key in inductor:
        if key not in known:
            raise ValueError(_unknown_option(key, own, known))
    inner = given.get("inner", "inductor")
    if inner not in INNER:
        raise ValueError(f"option inner must be one of {', '.join(INNER)}; got {inner!r}")
    fusions = {name: given[name] for name in PASS_NAMES if name in given}
    for key, value in {"strict": given.get("strict", False), **fusions}.items():
        if not isinstance(value, bool):
            raise TypeError(f"option {key} must be True or False, got {value!r}")
    structure = _read_structure(given)
    for key, value in inductor.items():
        _check_inductor_type(key, value, config.get_type(key))  # type: ignore[attr-defined]
    return Settings(
        inner=inner,
        strict=given.get("strict", False),
        fusions=fusions,
        structure=structure,
        sparsity=given.get("sparsity"),
        inductor={**list_mode_options(mode or "default"), **inductor},
    )


def _unknown_option(key: str, own: tuple[str, ...], known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(key, [*own, *known], n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return (
        f"unknown option {key!r} for backend 'padst'{hint} Its own options are "
        f"{', '.join(own)}; every option of torch._inductor.config is taken too"
    )


def _read_structure(given: Mapping[str, Any]) -> Structure | None:
    if "structure" not in given:
        if "sparsity" in given:
            raise ValueError("option sparsity needs option structure, such as 'diag'")
        return None
    from padst_fx.structures import NM, parse_structure
    from padst_fx.structures.base import check_sparsity

    structure = parse_structure(given["structure"])
    if not (isinstance(structure, NM) and structure.n is not None and "sparsity" not in given):
        check_sparsity(given.get("sparsity"))
    return structure


def _check_inductor_type(key: str, value: Any, expected: Any) -> None:
    # A generic alias such as `list[str]` cannot be asked with isinstance.
    if get_origin(expected) is None and not isinstance(value, expected):
        name = getattr(expected, "__name__", expected)
        raise TypeError(f"option {key} must be of type {name}, got {value!r}")


def _compile(
    gm: torch.fx.GraphModule, example_inputs: list[Any], settings: Settings
) -> Callable[..., Any]:
    if settings.inner == "eager":
        return gm.forward
    manager = pass_manager(settings)
    back_half = _compile_inductor if settings.inner == "inductor" else _compile_aot_eager
    compiled = back_half(gm, example_inputs, settings, manager)
    if not manager.reports:
        log.info("graph taken from the compile cache, no pass was run")
    return compiled


def pass_manager(settings: Settings) -> PassManager:
    """The passes that the settings ask for, for one compile."""
    from padst_fx.passes import PassManager, build_joint_pipeline, build_pipeline

    disabled = [name for name, on in settings.fusions.items() if not on]
    requested = [name for name, on in settings.fusions.items() if on]
    return PassManager(
        build_pipeline(disabled),
        joint_passes=build_joint_pipeline(disabled),
        required=requested if settings.strict else (),
        require_any=settings.strict and not requested,
    )


def _compile_inductor(
    gm: torch.fx.GraphModule, example_inputs: list[Any], settings: Settings, manager: PassManager
) -> Callable[..., Any]:
    from torch._inductor.async_compile import maybe_warm_pool
    from torch._inductor.compile_fx import compile_fx

    maybe_warm_pool()
    patches = inductor_patches(settings, manager)
    return compile_fx(gm, example_inputs, config_patches=patches)  # type: ignore[return-value]


def inductor_patches(settings: Settings, manager: PassManager) -> dict[str, Any]:
    """Inductor's options of a compile with the manager's passes in it."""
    from torch._inductor import config

    from padst_fx.passes.pass_manager import JointPasses

    patches = dict(settings.inductor)
    ours = {"joint_custom_pre_pass": JointPasses(manager), "post_grad_custom_pre_pass": manager}
    for key, own in ours.items():
        patches[key] = _after(settings.inductor.get(key, getattr(config, key)), own)
    return patches


def _after(users: Any, own: CustomGraphPass) -> Any:
    """The user's own custom passes, if any, then ours."""
    if users is None:
        return own
    from torch._inductor import custom_graph_pass

    from padst_fx.passes.pass_manager import PassChain

    if hasattr(custom_graph_pass, "get_custom_graph_passes"):
        return (*custom_graph_pass.get_custom_graph_passes(users), own)
    return PassChain((users, own))


def _compile_aot_eager(
    gm: torch.fx.GraphModule, example_inputs: list[Any], settings: Settings, manager: PassManager
) -> Callable[..., Any]:
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.aot_autograd import make_boxed_func
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.decomposition import select_decomp_table

    def run_eagerly(module: torch.fx.GraphModule, _: list[Any]) -> Callable[..., Any]:
        manager(module.graph)
        module.recompile()
        return make_boxed_func(module.forward)

    def run_inference(module: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        manager.run_joint(module.graph)
        return run_eagerly(module, inputs)

    def partition(module: torch.fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
        manager.run_joint(module.graph)
        return min_cut_rematerialization_partition(module, *args, **kwargs)

    return aot_autograd(
        fw_compiler=run_eagerly,
        inference_compiler=run_inference,
        decompositions=select_decomp_table(),
        partition_fn=partition,
        keep_inference_input_mutations=True,
    )(gm, example_inputs)
