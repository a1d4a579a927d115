"""A service that classifies digits with onnxruntime: neither torch nor padst_fx is needed."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime


class Classifier:
    """An ONNX file of a model that takes images `[N, 8, 8]` and returns logits `[N, 10]`."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        (given,) = self.session.get_inputs()
        self.input = given.name

    def logits(self, images: list[list[list[float]]]) -> np.ndarray:
        """The logits of nested lists; raises `ValueError` unless they are 8 x 8 images."""
        array = np.asarray(images, np.float32)
        if array.ndim != 3 or array.shape[1:] != (8, 8):
            raise ValueError(f"images must be [N, 8, 8], got {list(array.shape)}")
        return self.session.run(None, {self.input: array})[0]


class Classifies(Protocol):
    """What a server needs of a classifier."""

    def logits(self, images: list[list[list[float]]]) -> np.ndarray:
        """The logits of nested lists; raises `ValueError` unless they are 8 x 8 images."""


class Handler(BaseHTTPRequestHandler):
    """`POST /` with `{"images": [N, 8, 8]}` answers `{"logits": [N, 10]}`."""

    server: Server

    def do_POST(self) -> None:
        try:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            logits = self.server.classifier.logits(body["images"])
        except (KeyError, TypeError, ValueError) as error:
            self._answer(400, {"error": f"{type(error).__name__}: {error}"})
        else:
            self._answer(200, {"logits": logits.tolist()})

    def _answer(self, status: int, content: dict[str, object]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing for each request."""


class Server(ThreadingHTTPServer):
    """Serves one classifier on a free port of this machine."""

    def __init__(self, classifier: Classifies) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.classifier = classifier
