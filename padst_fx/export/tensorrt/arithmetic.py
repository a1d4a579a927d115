"""The arithmetic of a parsed network, read from its layers."""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import Any

# Layers that move or convert a tensor, so that behind them still lies the same weight.
MOVING = ("SHUFFLE", "CAST", "IDENTITY", "SQUEEZE", "UNSQUEEZE")


# Stands between a layer's name and the number of its product, in the names of products.
PART = "#"


def multiply_adds(network: Any) -> Counter[str]:
    """Multiply-adds of matrix products with weights, for one token, by the name of the layer.

    They are as many as the weight has entries. Products of two activations, as in attention, are
    not among them.
    """
    layers = [network.get_layer(number) for number in range(network.num_layers)]
    makers = {layer.get_output(place).name: layer
              for layer in layers for place in range(layer.num_outputs)}  # fmt: skip
    found: Counter[str] = Counter()
    for layer in layers:
        if layer.type.name == "MATRIX_MULTIPLY":
            operands = [layer.get_input(place) for place in range(2)]
            weights = [each for each in operands if _is_weight(each, makers)]
            if weights:
                found[layer.name.partition(PART)[0]] += prod(weights[0].shape)
    return found


def _is_weight(tensor: Any, makers: dict[str, Any]) -> bool:
    maker = makers.get(tensor.name)
    if maker is None:
        return -1 not in tensor.shape
    if maker.type.name == "CONSTANT":
        return True
    return maker.type.name in MOVING and _is_weight(maker.get_input(0), makers)
