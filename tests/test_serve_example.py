"""The serving example runs as its page says, in its quick form."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="module")
def printed(folder: Path) -> str:
    command = [sys.executable, "-m", "examples.serve_onnx", str(folder), "--quick"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_served_accuracy_is_that_of_the_model(printed: str) -> None:
    found = re.search(r"accuracy (\S+) in torch, (\S+) served; largest error (\S+)", printed)
    assert found is not None
    assert found[1] == found[2]
    assert float(found[3]) < 1e-4


def test_bad_requests_are_answered(
    printed: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from examples.serve_onnx.server import Classifier, Server

    server = Server(Classifier(folder / "digits.onnx"))
    threading.Thread(target=server.serve_forever).start()
    try:
        for body in (b"{}", b"no", json.dumps({"images": [[1.0]]}).encode()):
            request = urllib.request.Request(f"http://127.0.0.1:{server.server_port}/", body)
            with pytest.raises(urllib.error.HTTPError, match="400"):
                urllib.request.urlopen(request)
    finally:
        server.shutdown()
        server.server_close()
