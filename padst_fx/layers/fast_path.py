"""The fused inference paths of `nn.TransformerEncoder`, which read dense weights directly."""

from __future__ import annotations

from torch import nn

from padst_fx.layers.attention import MultiheadAttention
from padst_fx.layers.linear import SparseLinear

# The attribute that each class checks before it takes its fused path, and the value that bars it.
SWITCHES: dict[type[nn.Module], tuple[str, object]] = {
    nn.TransformerEncoder: ("use_nested_tensor", False),
    nn.TransformerEncoderLayer: ("activation_relu_or_gelu", 0),
}


def bar_fast_paths(model: nn.Module) -> None:
    """Bar the fused path of every encoder that holds a sparse layer; give it back to others."""
    for module in model.modules():
        for encoder, (switch, barred) in SWITCHES.items():
            if isinstance(module, encoder) and hasattr(module, switch):
                _set(module, switch, barred)


def _set(module: nn.Module, switch: str, barred: object) -> None:
    kept = f"_padst_{switch}"
    if any(isinstance(m, (SparseLinear, MultiheadAttention)) for m in module.modules()):
        if not hasattr(module, kept):
            setattr(module, kept, getattr(module, switch))
        setattr(module, switch, barred)
    elif hasattr(module, kept):
        setattr(module, switch, getattr(module, kept))
        delattr(module, kept)
