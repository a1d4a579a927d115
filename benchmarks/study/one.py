"""One run in a process of its own: a run as JSON comes in on the command line, a row goes out."""

from __future__ import annotations

import json
import sys

import torch

from benchmarks.study.runs import Run
from benchmarks.study.training import train


def main() -> None:
    """Print the row as the last line."""
    torch.set_num_threads(int(sys.argv[2]))
    print(json.dumps(train(Run(**json.loads(sys.argv[1])))))


if __name__ == "__main__":
    main()
