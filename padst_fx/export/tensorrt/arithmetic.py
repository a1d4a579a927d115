"""The arithmetic of a parsed network, read from its layers."""

from __future__ import annotations

from math import prod
from typing import Any

# Layers that move or convert a tensor, so that behind them still lies the same weight.
MOVING = ("SHUFFLE", "CAST", "IDENTITY", "SQUEEZE", "UNSQUEEZE")


def products(network: Any) -> dict[str, int]:
    """The matrix products with weights: multiply-adds for one token, by the layer's name.

    A product with a weight has as many for every token as the weight has entries. Products of two
    activations, as in attention, are not among them.
    """
    layers = [network.get_layer(number) for number in range(network.num_layers)]
    makers = {layer.get_output(place).name: layer
              for layer in layers for place in range(layer.num_outputs)}  # fmt: skip
    found = {}
    for layer in layers:
        if layer.type.name == "MATRIX_MULTIPLY":
            operands = [layer.get_input(place) for place in range(2)]
            weights = [each for each in operands if _is_weight(each, makers)]
            if weights:
                found[layer.name] = prod(weights[0].shape)
    return found


def _is_weight(tensor: Any, makers: dict[str, Any]) -> bool:
    maker = makers.get(tensor.name)
    if maker is None:
        return -1 not in tensor.shape
    if maker.type.name == "CONSTANT":
        return True
    return maker.type.name in MOVING and _is_weight(maker.get_input(0), makers)
