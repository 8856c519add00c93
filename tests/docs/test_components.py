"""docs/guide/components.md names every contract of the source, what each wrapper keeps, and the guard's signals."""

import ast
import importlib
import pkgutil
import re
from pathlib import Path

import thalweg
import thalweg.energy
import thalweg.sampler
from thalweg.energy.wrappers import EnergyWrapper
from thalweg.training.guard import LIMITS

SOURCE = Path(thalweg.__file__).parent
PAGE = (Path(__file__).parents[2] / "docs" / "guide" / "components.md").read_text("utf-8")
INSIDE = ("energy/engine",)  # how chains are made fast: no part is added there
OF_ALL = ("init", "draw", "step")  # of every sampler
ABSTRACT = {"Protocol", "ABC", "EnergyWrapper"}


def contracts() -> dict[str, str]:
    """Protocols and abstract classes by name, with the file that defines each."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        where = path.relative_to(SOURCE).as_posix()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))) if not where.startswith(INSIDE) else ():
            bases = (
                {ast.unparse(base).partition("[")[0] for base in node.bases} if isinstance(node, ast.ClassDef) else ()
            )
            if bases and ABSTRACT & set(bases):
                found[node.name] = where
    return found


def test_every_contract_is_named():
    known = contracts()
    assert {"HasGradient", "AnnealedSampler", "Labelled", "Transform", "NamedSet", "StoredType", "Tempered"} <= set(
        known
    )
    assert {name: where for name, where in known.items() if f"`{name}`" not in PAGE} == {}


def test_every_capability_has_a_row_with_its_members():
    for package in ("energy", "sampler", "objective"):
        module = importlib.import_module(f"thalweg.{package}.base")
        for name, value in vars(module).items():
            if isinstance(value, thalweg.energy.base.Capability) and name not in ("Sampler", "Objective"):
                row = re.search(rf"^\| `{name}` \|([^|]*)\|([^|]*)\|([^|]*)\|$", PAGE, re.MULTILINE)
                assert row is not None, name
                assert all(f"`{member}" in row[1] for member in value.members() if member not in OF_ALL), name
                assert row[2].strip(), f"{name}: who asks"
                assert row[3].strip(), f"{name}: what follows"


def test_every_wrapper_has_the_list_that_it_keeps():
    for package in (thalweg.energy, thalweg.sampler):
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(info.name)
    wrappers = [cls for cls in EnergyWrapper.__subclasses__() if cls.__module__.startswith("thalweg.")]
    assert len(wrappers) >= 8
    for cls in wrappers:
        row = re.search(rf"^\| `{cls.__name__}`[^|]*\|([^|]*)\|$", PAGE, re.MULTILINE)
        assert row is not None, cls.__name__
        assert set(re.findall(r"`([A-Z]\w+)`", row[1])) == {capability.__name__ for capability in cls.keeps}


def test_every_signal_of_the_guard_is_named():
    for limit in LIMITS:
        assert f"| `{limit.signal}` | `{limit.setting}` |" in PAGE
