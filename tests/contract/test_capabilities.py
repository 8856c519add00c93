"""No part asks another by the text of a name: capabilities are Protocols, which `isinstance` asks for.

`getattr(x, "name")` and `hasattr(x, "name")` are undeclared: nobody can look up what a part may offer, and a misspelt
name is a silent no. Those that remain ask objects of other libraries, and each says why.
"""

import ast
from pathlib import Path

import pytest

import thalweg

SOURCE = Path(thalweg.__file__).parent
PACKAGES = ("energy", "sampler", "objective", "training", "run", "apps")
ARRAYS = "arrays and frames of several libraries"
EXCEPTIONS = {  # (file, name): why
    ("apps/anomaly/detector_input.py", "column_names"): ARRAYS,
    ("apps/anomaly/input_arrays.py", "dtype"): ARRAYS,
    ("apps/anomaly/input_arrays.py", "dtypes"): ARRAYS,
    ("apps/anomaly/input_arrays.py", "kind"): ARRAYS,
    ("apps/rerank/candidates.py", "images"): "the output of a diffusers pipeline",
    ("energy/engine/attention.py", "list_flash_attention_impls"): "a function of torch, which not every version has",
    ("energy/engine/discovery.py", "__dict__"): "any Python object, in which modules are looked for",
    ("energy/engine/known_layers.py", "inplace"): "an option of torch's activations, which not all have",
    ("energy/engine/fused.py", "OptimizedModule"): "a class of torch._dynamo, which not every version has",
    ("run/module_checks.py", "gradient"): "a setting, for the hint of a message alone",
    ("training/state.py", "fixed_buffers"): "of any module inside a network, torch's own too",
    ("objective/score/derivatives.py", "variable"): "a field of those nodes of torch's graph that accumulate",
}


def asked(text: str) -> set[str]:
    """The literal names that a module asks for by getattr or hasattr."""
    calls = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call) and len(node.args) > 1)
    found = set()
    for call in calls:
        name = call.args[1]
        if isinstance(call.func, ast.Name) and call.func.id in ("getattr", "hasattr"):
            found |= {name.value} if isinstance(name, ast.Constant) and isinstance(name.value, str) else set()
    return found


def in_the_tree() -> set[tuple[str, str]]:
    files = [path for package in PACKAGES for path in sorted((SOURCE / package).rglob("*.py"))]
    return {(path.relative_to(SOURCE).as_posix(), name) for path in files for name in asked(path.read_text("utf-8"))}


def test_capabilities_are_asked_for_by_isinstance():
    assert in_the_tree() - EXCEPTIONS.keys() == set(), "declare a Protocol, or say in EXCEPTIONS why not"


def test_the_exceptions_are_there():
    assert EXCEPTIONS.keys() - in_the_tree() == set(), "gone from the source: take it out of the list"
    assert all(EXCEPTIONS.values())


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("noisy = getattr(energy, 'noisy', False)", {"noisy"}),
        ("def f(x):\n    return hasattr(x, 'fit') and x.fit()", {"fit"}),
        ("getattr(settings, name)", set()),
        ("vars(module).get('app')", set()),
    ],
)
def test_the_check_meets_what_it_should(text, names):
    assert asked(text) == names
