"""A generator hands out what it made with torch's settings, and the networks, as it found them.

What a generator yields inside a `with` holds until its caller asks again, so the body of the caller's loop would work
under it, and a loop that is left early would never end it. A function of `contextlib.contextmanager` is another thing:
its yield is the block that the caller writes under `with`.
"""

import ast
from pathlib import Path

import thalweg

SETTINGS = {"autocast", "no_grad", "enable_grad", "set_grad_enabled", "inference_mode", "fork_rng", "catch_warnings"}
HOLDS = {"frozen", "at_precision", "fastest", "compiled", "turn", "on_threads"}
ROOT = Path(thalweg.__file__).parent


def _name(node: ast.expr) -> str:
    node = node.func if isinstance(node, ast.Call) else node
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _yields_under(node: ast.AST, inside: frozenset[str] = frozenset()) -> set[str]:
    """The names of the contexts under which a function's own body yields."""
    found = set(inside) if isinstance(node, ast.Yield | ast.YieldFrom) else set()
    if isinstance(node, ast.With):
        inside = inside | {_name(item.context_expr) for item in node.items}
    inner = (child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.FunctionDef | ast.Lambda))
    return found.union(*(_yields_under(child, inside) for child in inner))


def faults(source: str) -> list[str]:
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    plain = (f for f in functions if "contextmanager" not in map(_name, f.decorator_list))
    return [f"{f.name} yields under {name}" for f in plain for name in _yields_under(f) & (SETTINGS | HOLDS)]


def test_no_generator_yields_under_a_setting_that_outlives_its_step():
    found = {str(path.relative_to(ROOT)): faults(path.read_text(encoding="utf-8")) for path in ROOT.rglob("*.py")}
    assert len(found) > 50
    assert {name: each for name, each in found.items() if each} == {}


def test_the_check_sees_one():
    body = "    with torch.autocast('cpu'), open(path) as file:\n        for x in file:\n            yield x\n"
    assert faults(f"def rows(path):\n{body}") == ["rows yields under autocast"]
    assert faults(f"@contextmanager\ndef rows(path):\n{body}") == []
    assert faults("def rows(n):\n    with frozen(n):\n        x = 1\n    yield x\n") == []
