"""Triton's interpreter multiplies the bits of bfloat16 operands of tl.dot: widen them first.

The interpreter stores bfloat16 as uint16 and its dot has no case for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def widened(operand: Any) -> Any:
    """The operand, as float32 if it is bfloat16."""
    if operand.dtype.scalar != tl.bfloat16:
        return operand
    data = (operand.data.astype(np.uint32) << 16).view(np.float32)
    return interpreter.TensorHandle(data, tl.float32)


def install() -> None:
    """Replace the interpreter's dot."""
    plain = interpreter.InterpreterBuilder.create_dot

    def create_dot(builder: Any, left: Any, right: Any, *rest: Any) -> Any:
        return plain(builder, widened(left), widened(right), *rest)

    interpreter.InterpreterBuilder.create_dot = create_dot
