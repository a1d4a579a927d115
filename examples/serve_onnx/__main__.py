"""`python -m examples.serve_onnx [OUTPUT] [--quick]`, from the repository's root.

Trains the digits ViT with blocks, 90 % sparse, exports it, serves the file over HTTP, asks for all
test images in requests of several sizes and compares the answers with the model's own.
"""

from __future__ import annotations

import argparse
import json
import threading
import urllib.request
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim

import padst_fx
from examples.digits_vit import data
from examples.digits_vit.contestants import Contestant, build
from examples.digits_vit.training import Recipe, train
from examples.serve_onnx.server import Classifier, Server

REQUESTS = (1, 7, 32)
TOLERANCE = 1e-4


def trained(recipe: Recipe) -> tuple[Contestant, data.Digits, float]:
    """The trained model, eagerly, and its accuracy."""
    built = build("Block")
    contestant = Contestant(built.name, built.model, built.model, built.projections)
    digits = data.load()
    result = train(contestant, digits, recipe, 0, lambda: None)
    return contestant, digits, result.accuracy


def ask(address: str, images: Tensor) -> Tensor:
    """The logits of the service at an address."""
    body = json.dumps({"images": images.tolist()}).encode()
    with urllib.request.urlopen(urllib.request.Request(address, body)) as answer:
        return torch.tensor(json.load(answer)["logits"])


def served(path: Path, images: Tensor) -> Tensor:
    """The logits of all images, asked for in requests of `REQUESTS` images in turn."""
    server = Server(Classifier(path))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/"
        sizes = [*REQUESTS] * (len(images) // sum(REQUESTS))
        parts = images.split([*sizes, len(images) - sum(sizes)])
        return torch.cat([ask(address, part) for part in parts if len(part)])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@torch.no_grad()
def check(model: torch.nn.Module, images: Tensor, logits: Tensor) -> float:
    """The largest error as a share of the largest logit; raises `RuntimeError` for too large."""
    expected = model(images)
    error = float((logits - expected).abs().max() / expected.abs().max())
    if not error < TOLERANCE:
        raise RuntimeError(f"the served logits differ from the model's by {error:.1e} of them")
    return error


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.serve_onnx", description=__doc__)
    parser.add_argument("output", nargs="?", type=Path, default=Path("build/serve"))
    parser.add_argument("--quick", action="store_true", help="a few steps: shows that it runs")
    given = parser.parse_args()
    torch.set_num_threads(1)
    recipe = Recipe(steps=24, delta_t=6) if given.quick else Recipe()
    contestant, digits, accuracy = trained(recipe)
    model, images = contestant.model.eval(), digits.test_images
    given.output.mkdir(parents=True, exist_ok=True)
    report = padst_fx.export_onnx(
        model, images[:16], given.output / "digits.onnx", {"images": {0: Dim.DYNAMIC}}
    )
    print(report)
    logits = served(report.path, images)
    error = check(model, images, logits)
    right = float((logits.argmax(1) == digits.test_labels).double().mean())
    print(f"accuracy {accuracy:.3f} in torch, {right:.3f} served; largest error {error:.1e}")


if __name__ == "__main__":
    main()
