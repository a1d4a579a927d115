"""Attention masks: those that hide nothing are not in the file, others are."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import torch
import torch.nn.functional as F
from onnx_checks import check, session
from torch import Tensor, nn
from torch.export import Dim

import padst_fx

Mask = Callable[[Tensor], Tensor]
MASKS: dict[str, tuple[Mask, bool]] = {
    "true": (lambda x: torch.ones(6, 6, dtype=torch.bool), True),
    "computed": (lambda x: (torch.arange(6) >= 0)[None, None].expand(x.shape[0], -1, 6, 6), True),
    "causal": (lambda x: torch.ones(6, 6, dtype=torch.bool).tril(), False),
    "added": (lambda x: torch.zeros(6, 6), False),
    "by input": (lambda x: (x[:, None, :, :1] < 9).expand(-1, -1, -1, 6), False),
}


class Attention(nn.Module):
    """One head over six tokens for each of `MASKS`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.values = padst_fx.SparseLinear(16, 16, "diag", 0.5)

    def forward(self, x: Tensor) -> list[Tensor]:
        heads, values = x.unsqueeze(1), self.values(x).unsqueeze(1)
        attend = F.scaled_dot_product_attention
        return [
            attend(heads * number, heads, values, attn_mask=mask(x))
            for number, (mask, _) in enumerate(MASKS.values(), 1)
        ]


def test_only_masks_that_hide_nothing_go(tmp_path):
    model, x, shapes = Attention().eval(), torch.randn(2, 6, 16), {"x": {0: Dim.DYNAMIC}}
    frozen = padst_fx.freeze(model, x, shapes, skip_slower=False)
    before = str(frozen.program.graph)
    report = padst_fx.export_onnx(frozen, x, tmp_path / "model.onnx", shapes)
    assert str(frozen.program.graph) == before
    nodes = onnx.load(report.path).graph.node
    made_by = {name: node.op_type for node in nodes for name in node.output}
    unmasked = [made_by[n.input[0]] == "MatMul" for n in nodes if n.op_type == "Softmax"]
    assert unmasked == [goes for _, goes in MASKS.values()]
    opened = session(report.path)
    for batch in (2, 5):
        check(opened, model, torch.randn(batch, 6, 16))
