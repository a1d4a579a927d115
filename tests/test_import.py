"""`import padst_fx` is quick and starts nothing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import padst_fx


def run(script: str) -> str:
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return process.stdout


def test_nothing_beside_torch_is_imported_and_no_cuda_context_is_made():
    """What it takes in milliseconds is in the benchmarks: `python -m benchmarks cold-start`."""
    script = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import padst_fx\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - sys.stdlib_module_names), torch.cuda.is_initialized())\n"
    )
    assert run(script).strip() == "['padst_fx'] False"


def test_integrations_say_what_to_install():
    script = (
        "import sys\n"
        "from importlib import import_module\n"
        "sys.modules |= dict.fromkeys(['accelerate', 'lightning'])\n"
        "for library in ('transformers', 'lightning'):\n"
        "    try:\n"
        "        import_module(f'padst_fx.integrations.{library}')\n"
        "    except ImportError as error:\n"
        "        print(error)\n"
    )
    told = run(script).splitlines()
    assert "pip install 'padst_fx[transformers]'" in told[0]
    assert "pip install 'padst_fx[lightning]'" in told[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that start as copies")
def test_every_public_name_is_there_whichever_is_used_first():
    """A submodule named like a function would replace it once it is imported."""
    script = (
        "import os, sys, torch\n"
        f"for first in {['__all__', 'densify', 'load', 'summary']}:\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        import padst_fx\n"
        "        getattr(padst_fx, first)\n"
        "        for name in padst_fx.__all__:\n"
        "            assert callable(getattr(padst_fx, name)), (first, name)\n"
        "        os._exit(0)\n"
        "    assert os.waitpid(child, 0)[1] == 0, first\n"
        "import padst_fx.integrations\n"
        "print({'transformers', 'accelerate', 'lightning'} & set(sys.modules))\n"
    )
    assert run(script).strip() == "set()"
    assert set(padst_fx.__all__) <= set(dir(padst_fx))
