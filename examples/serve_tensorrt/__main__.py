"""`python -m examples.serve_tensorrt [OUTPUT] [--quick] [--serve]`, from the repository's root.

Trains the digits ViT with blocks, 90 % sparse, and builds an engine of it, which needs no GPU with
TensorRT-RTX. Where there is a GPU it then serves the engine over HTTP and compares the answers to
all test images with the model's own. `--serve` only serves the engine that is in OUTPUT already.
"""

from __future__ import annotations

import argparse
import sys
import threading
from pathlib import Path

import torch
from torch.export import Dim

import padst_fx
from examples.digits_vit.training import Recipe
from examples.serve_onnx.__main__ import ask, check, trained
from examples.serve_onnx.server import Server
from examples.serve_tensorrt.engine import EngineClassifier

LARGEST = 64
NAME = "digits.engine"


def build(output: Path, quick: bool) -> tuple[torch.nn.Module, torch.Tensor, Path]:
    """Train and export; the model, the test images and the engine's path."""
    recipe = Recipe(steps=24, delta_t=6) if quick else Recipe()
    contestant, digits, accuracy = trained(recipe)
    model, images = contestant.model.eval(), digits.test_images
    output.mkdir(parents=True, exist_ok=True)
    shapes = {"images": {0: Dim("batch", min=1, max=LARGEST)}}
    report = padst_fx.export_tensorrt(model, images[:16], output / NAME, shapes)
    print(report)
    print(f"accuracy {accuracy:.3f} in torch")
    return model, images, report.path


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.serve_tensorrt", description=__doc__)
    parser.add_argument("output", nargs="?", type=Path, default=Path("build/serve_tensorrt"))
    parser.add_argument("--quick", action="store_true", help="a few steps: shows that it runs")
    parser.add_argument("--serve", action="store_true", help="serve what OUTPUT holds")
    given = parser.parse_args()
    built = None if given.serve else build(given.output, given.quick)
    try:
        classifier = EngineClassifier(given.output / NAME)
    except RuntimeError as error:
        print(f"not served: {error}", file=sys.stderr)
        return 1
    server = Server(classifier)
    address = f"http://127.0.0.1:{server.server_port}/"
    if built is None:
        print(f"POST {{\"images\": [N, 8, 8]}} to {address}")
        server.serve_forever()
        return 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    model, images, _ = built
    logits = torch.cat([ask(address, part) for part in images.split(LARGEST)])
    print(f"largest error {check(model.cpu(), images.cpu(), logits):.1e}")
    server.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
