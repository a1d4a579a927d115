"""A service's classifier on a TensorRT engine that `padst_fx.export_tensorrt` wrote."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

NO_GPU = (
    "no CUDA device: an engine is built without one, but read and run only with one. Copy the "
    "files {names} to a machine with a GPU and start there: python -m examples.serve_tensorrt "
    "{folder} --serve"
)


class EngineClassifier:
    """An engine of a model that takes images `[N, 8, 8]` and returns logits `[N, 10]`.

    Weights that are inputs of the engine are bound once; larger requests than the engine's largest
    are cut. Raises `RuntimeError` where there is no CUDA device, or the engine is for another.
    """

    def __init__(self, path: Path) -> None:
        if not torch.cuda.is_available():
            names = ", ".join(sorted(found.name for found in path.parent.glob(f"{path.name}*")))
            raise RuntimeError(NO_GPU.format(names=names, folder=path.parent))
        record = json.loads(Path(f"{path}.json").read_text())
        trt = importlib.import_module(record["library"])
        self.runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        self.engine = self.runtime.deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:
            raise RuntimeError(f"{path} is not for {torch.cuda.get_device_name()}")
        self.context = self.engine.create_execution_context()
        (self.input,), (self.output,) = record["inputs"], record["outputs"]
        self.largest = self.input["largest"][0]
        weights = f"{path}.weights.safetensors"
        self.weights = load_file(weights, device="cuda") if record["weights"] else {}
        for name, tensor in self.weights.items():
            self.context.set_tensor_address(name, tensor.data_ptr())

    def logits(self, images: list[list[list[float]]]) -> np.ndarray:
        """The logits of nested lists; raises `ValueError` unless they are 8 x 8 images."""
        given = torch.tensor(np.asarray(images, np.float32))
        if given.dim() != 3 or given.shape[1:] != (8, 8):
            raise ValueError(f"images must be [N, 8, 8], got {list(given.shape)}")
        return torch.cat([self._run(part) for part in given.split(self.largest)]).numpy()

    def _run(self, images: Tensor) -> Tensor:
        x = images.cuda()
        y = torch.empty(len(x), 10, device="cuda")
        self.context.set_input_shape(self.input["name"], tuple(x.shape))
        self.context.set_tensor_address(self.input["name"], x.data_ptr())
        self.context.set_tensor_address(self.output, y.data_ptr())
        stream = torch.cuda.current_stream()
        if not self.context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError("TensorRT could not run the engine")
        stream.synchronize()
        return y.cpu()
