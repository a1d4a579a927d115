"""The ordered list of passes: the one place to add, remove or reorder one."""

from __future__ import annotations

from collections.abc import Collection

from padst_fx.passes.fuse_activation import FuseActivation
from padst_fx.passes.fuse_bias import FuseBias
from padst_fx.passes.fuse_gather import FuseGather
from padst_fx.passes.fuse_scatter import FuseScatter
from padst_fx.passes.graph_pass import GraphPass

# The bias first: an op with a fused activation can no longer take one.
PIPELINE: tuple[type[GraphPass], ...] = (FuseBias, FuseActivation)

# On forward and backward in one, before it is decided what the backward keeps. The scatter first:
# it knows permutations by the ops that take them, before these are composed.
JOINT_PIPELINE: tuple[type[GraphPass], ...] = (FuseScatter, FuseGather)

PASS_NAMES = tuple(graph_pass.name for graph_pass in (*JOINT_PIPELINE, *PIPELINE))


def build_pipeline(disabled: Collection[str] = ()) -> tuple[GraphPass, ...]:
    """The passes of `PIPELINE` in order, without the ones named in `disabled`.

    Raises ValueError for a name that no pass has.
    """
    unknown = sorted(set(disabled) - set(PASS_NAMES))
    if unknown:
        raise ValueError(f"unknown passes {unknown}; valid: {', '.join(PASS_NAMES)}")
    return tuple(graph_pass() for graph_pass in PIPELINE if graph_pass.name not in disabled)


def build_joint_pipeline(disabled: Collection[str] = ()) -> tuple[GraphPass, ...]:
    """The passes of `JOINT_PIPELINE` in order, without the ones named in `disabled`."""
    return tuple(graph_pass() for graph_pass in JOINT_PIPELINE if graph_pass.name not in disabled)
