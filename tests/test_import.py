"""`import padst_fx` is quick and starts nothing."""

from __future__ import annotations

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


@pytest.mark.parametrize("library", ["transformers", "lightning"])
def test_integrations_import_their_own_library_and_say_when_it_is_missing(library):
    script = (
        "import sys\n"
        "import padst_fx, padst_fx.integrations\n"
        "for name in padst_fx.__all__:\n"
        "    getattr(padst_fx, name)\n"
        "assert not {'transformers', 'accelerate', 'lightning'} & set(sys.modules)\n"
        f"sys.modules[{library!r}] = None\n"
        "try:\n"
        f"    import padst_fx.integrations.{library}\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    assert f"pip install 'padst_fx[{library}]'" in run(script)


def test_every_public_name_is_there():
    script = (
        "import padst_fx\n"
        "for name in padst_fx.__all__:\n"
        "    assert callable(getattr(padst_fx, name)), name\n"
    )
    run(script)
    assert set(padst_fx.__all__) <= set(dir(padst_fx))


@pytest.mark.parametrize("first", ["densify", "load", "summary"])
def test_names_do_not_depend_on_the_order_of_use(first):
    """A submodule named like a function would replace it once it is imported."""
    run(
        f"import padst_fx; padst_fx.{first}\n"
        "for name in padst_fx.__all__:\n"
        "    assert callable(getattr(padst_fx, name)), name\n"
    )
