"""The documentation site finds every public name, and shows docstrings as they are written. `make docs` builds it."""

import importlib.util
import re
from pathlib import Path

import pytest

import thalweg

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guide" / "components.md").read_text("utf-8")
CONTRACT = re.compile(r"^\| `([A-Za-z]\w+)`[^|]*\|", re.MULTILINE)


def part(name):
    """A module of docs/site, without Sphinx."""
    spec = importlib.util.spec_from_file_location(f"site_{name}", ROOT / "docs" / "site" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


names, markup = part("names"), part("markup")


def test_every_public_module_and_name_has_a_page():
    """Those that `import thalweg` offers, those of components.md, and every class and function of every module."""
    known = {module.name: {name.name for name in module.names} for module in names.modules()}
    assert names.first_use().keys() == set(thalweg.__all__)
    assert all(name in known[home] for name, home in names.first_use().items())
    everything = set().union(*known.values())
    capitals = {name for name in CONTRACT.findall(PAGE) if name[0].isupper()}
    assert len(capitals) > 40
    assert sorted(capitals - everything) == []
    source = Path(thalweg.__file__).parent
    for path in source.rglob("*.py"):
        if not path.name.startswith("_"):
            module = ".".join(("thalweg", *path.relative_to(source).with_suffix("").parts))
            public = set(
                re.findall(r"^(?:class|def|async def) ([A-Za-z]\w*)[(:\[]", path.read_text("utf-8"), re.MULTILINE)
            )
            assert public <= known[module], module


@pytest.mark.parametrize(
    ("docstring", "shown"),
    [
        ("E[ |x|² ] = 2 * h, x_ and _y", r"E[ \|x\|² ] = 2 \* h, x\_ and \_y"),
        ("sum of `w`[k] times `f`s", r"sum of ``w``\ [k] times ``f``\ s"),
        ("says `could not\nconvert` of x", "says ``could not convert`` of x"),
        ("As in:\n\n    x' = |x|\n\nso", "As in:\n\n::\n\n    x' = |x|\n\nso"),
        ("One.\n\nArgs:\n    x: Of `a` * b.", "One.\n\nArgs:\n    x: Of ``a`` \\* b."),
        ("It has\n- one\n- two", "It has\n\n- one\n- two"),
        ("a stray ` is shown", r"a stray \` is shown"),
    ],
)
def test_docstrings_are_shown_as_they_are_written(docstring, shown):
    assert "\n".join(markup.to_rst(docstring.split("\n"))) == shown
