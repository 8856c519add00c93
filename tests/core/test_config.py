"""Specs: what may be built, what is refused, and how refusals read."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from thalweg.core import config, recipes
from thalweg.core.errors import ThalwegError, UserError

SOURCE = """
from dataclasses import dataclass
from os import system
from pathlib import Path
from thalweg.core.check import positive
from thalweg.core.errors import DiskFull

@dataclass(frozen=True, kw_only=True)
class Net:
    channels: int = 8
    depth: int = 2
    shape: tuple = ()
    def __post_init__(self):
        positive(channels=self.channels)
        if self.depth < 1:
            raise ValueError(f"depth={self.depth} must be at least 1")

@dataclass(frozen=True, kw_only=True)
class Wide:
    channels: int = 8
    width: float = 1.0

@dataclass(frozen=True, kw_only=True)
class Sum:
    parts: list
    scale: float

class Outer:
    class Inner: ...

class Full:
    def __init__(self): raise DiskFull("no room")

class Faulty:
    def __init__(self, error: str): raise {e.__name__: e for e in FAULTS}[error]("inside")

FAULTS = (KeyError, AttributeError, IndexError, RuntimeError, AssertionError)
Alias = Outer.Inner
Forged = type("Forged", (), {"__module__": "os"})
function = lambda **kwargs: kwargs
"""
FAKE = "thalweg.energy.fake"
NET, WIDE, SUM = f"{FAKE}:Net", f"{FAKE}:Wide", f"{FAKE}:Sum"


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of components that seems to be part of the package."""
    module = ModuleType("thalweg.energy.fake")
    monkeypatch.setitem(sys.modules, "thalweg.energy.fake", module)
    code = compile(SOURCE, "fake", "exec")
    exec(code, vars(module))


def test_nested_specs_and_lists_of_specs_are_built_first() -> None:
    spec = {"type": SUM, "parts": [{"type": NET, "channels": 3}, {"type": WIDE}], "scale": 2.0}
    built = config.build(spec)
    assert [type(part).__name__ for part in built.parts] == ["Net", "Wide"]
    assert (built.parts[0].channels, built.scale) == (3, 2.0)
    assert spec["parts"][0] == {"type": NET, "channels": 3}, "the spec must stay as it was"


def test_run_time_keywords_win_and_must_be_accepted() -> None:
    assert config.build({"type": NET, "channels": 3}, channels=4, shape=(1,)).channels == 4
    with pytest.raises(UserError, match="Wide takes no 'shape'"):
        config.build({"type": WIDE}, shape=(1,))


@pytest.mark.parametrize(
    ("spec", "argument", "words"),
    [
        ({"type": NET, "chanels": 3}, "e.chanels", ["Net", "did you mean 'channels'?"]),
        ({"type": NET, "q": 3}, "e.q", ["channels, depth, shape"]),
        ({"type": SUM, "parts": []}, "e", ["Sum", "needs 'scale'"]),
        ({"type": SUM, "scale": 1, "parts": [{"type": NET, "dpth": 1}]}, "e.parts.0.dpth", ["'depth'"]),
        ({"type": NET, "depth": 0}, "e", ["depth=0 must be at least 1"]),
        ({"type": NET, "depth": "two"}, "e.depth", ["='two': must be a whole number"]),
        ({"type": NET, "channels": -1}, "e.channels", ["=-1: must be positive"]),
        ({"type": SUM, "scale": 1, "parts": [{"type": NET, "channels": 0}]}, "e.parts.0.channels", ["positive"]),
        ({"type": f"{FAKE}:Nett"}, "e.type", ["no class 'Nett'", "did you mean 'Net'?"]),
        ({"type": "thalweg.data.catalgo:X"}, "e.type", ["no module thalweg.data.catalgo", "did you mean 'catalog'?"]),
        ({"channels": 3}, "e", ["type: package.module:ClassName"]),
        ({"type": 3}, "e.type", ["package.module:ClassName"]),
        ({"type": NET, 3: 3}, "e.3", ["takes no 3"]),
    ],
)
def test_user_errors_are_one_line_with_the_place_and_the_remedy(
    spec: dict[Any, Any], argument: str, words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        config.build(spec, "e")
    assert caught.value.argument == argument
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_error_without_a_place_is_told_by_the_class() -> None:
    with pytest.raises(UserError) as caught:
        config.build({"type": NET, "depth": 0})
    assert caught.value.argument == "Net"
    with pytest.raises(UserError) as caught:
        config.build({"type": NET, "channels": -1})
    assert (caught.value.argument, caught.value.value) == ("Net.channels", -1)


@pytest.mark.parametrize("error", [KeyError, AttributeError, IndexError, RuntimeError, AssertionError])
def test_a_fault_of_a_class_is_not_told_as_the_users(error: type[Exception]) -> None:
    """It would send the user to look for what is right, and hide the fault's place. Mutant: except Exception."""
    with pytest.raises(error) as caught:
        config.build({"type": f"{FAKE}:Faulty", "error": error.__name__})
    assert not isinstance(caught.value, UserError)


def test_a_failure_that_is_not_the_users_keeps_its_type() -> None:
    with pytest.raises(ThalwegError) as caught:
        config.build({"type": "thalweg.energy.fake:Full"})
    assert not isinstance(caught.value, UserError)


HOSTILE = [
    *("os:system", "builtins:eval", "builtins:object", "subprocess:Popen", "pathlib:Path", "thalwegevil.x:Y"),
    *("thalweg.core.config:import_module", "thalweg.energy.base:torch.nn.Linear", "thalweg.energy.fake:Path"),
    *("thalweg.run.run_folder:Place", "thalweg.training.trainer:Trainer", "thalweg.core.errors:UserError"),
    *(
        "thalweg.cli.main:_Unreported",
        "thalweg.evaluate.digit_network:DigitNetwork",
        "thalweg.energyy:X",
        "thalweg.energy:X",
    ),
    *(
        "thalweg.energy.fake:system",
        "thalweg.energy.fake:Outer.Inner",
        "thalweg.energy.fake:Alias",
        "thalweg.energy.fake:Forged",
    ),
    *("thalweg.energy.fake:function", "thalweg.core..os:system", "thalweg.core.config.inspect:Signature"),
    *(
        "thalweg.energy.fake:__class__",
        "thalweg.energy.fake:Net\n",
        "thalweg.energy.fake:",
        ":Net",
        "thalweg.energy.fake",
        "",
        "../x:Net",
    ),
    *("thalweg.__main__:Net", "thalweg.core.recipes:_Loader", "thalweg.core.recipes:Path", "thalweg.energy.fake:Nét"),
]


@pytest.mark.parametrize("name", HOSTILE)
def test_only_classes_defined_under_a_trusted_prefix_are_built(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[str] = []
    original = config.import_module
    monkeypatch.setattr(config, "import_module", lambda m: (imported.append(m), original(m))[1])
    for spec in ({"type": name}, {"type": NET, "shape": [{"type": name}]}):
        with pytest.raises(UserError):
            config.build(spec)
        with pytest.raises(UserError):
            config.check(spec)
    assert all(m.startswith(config.TRUSTED) for m in imported)


def test_trust_is_of_whole_packages_and_can_be_extended() -> None:
    assert config.build({"type": "fractions:Fraction", "numerator": 3}, trusted=("fractions",)) == 3
    for prefix in ("fract", "", "."):
        with pytest.raises(UserError, match="refused"):
            config.build({"type": "fractions:Fraction"}, trusted=(prefix,))


def test_depth_is_bounded() -> None:
    tree: Any = 1
    for _ in range(500):
        tree = [tree]
    for act in (config.build, config.check):
        with pytest.raises(UserError, match="nested more than"):
            act({"type": NET, "shape": tree})


def test_check_builds_nothing_and_names_the_dotted_path() -> None:
    config.check({"energy": {"type": NET, "depth": 0}, "objective": {"type": SUM}, "seed": 0})
    with pytest.raises(UserError, match=r"^energy\.chanels: .*did you mean 'channels'"):
        config.check({"energy": {"type": NET, "chanels": 1}})
    with pytest.raises(UserError, match=r"^run\.energy\.type=.*did you mean 'Net'"):
        config.check({"type": "thalweg.energy.fake:Nett"}, "run.energy")


CONFIG = {"energy": {"type": NET, "channels": 3}, "parts": [{"type": WIDE}], "lr": 0.1, "data": None}


@pytest.mark.parametrize(
    ("text", "where", "value"),
    [
        ("lr=1e-3", ("lr",), 1e-3),
        ("lr=-2E+4", ("lr",), -2e4),
        ("lr='1e-3'", ("lr",), "1e-3"),
        ("energy.channels=16", ("energy", "channels"), 16),
        ("energy.depth=5", ("energy", "depth"), 5),
        ("parts.0.width=.5", ("parts", 0, "width"), 0.5),
        ("data={path: a=b}", ("data",), {"path": "a=b"}),
        ("lr=null", ("lr",), None),
        (f"data={{type: '{WIDE}', width: 1e1}}", ("data", "width"), 10.0),
    ],
)
def test_override_sets_one_value_in_a_copy(text: str, where: tuple[Any, ...], value: Any) -> None:
    before = repr(CONFIG)
    node: Any = config.override(CONFIG, [text])
    for key in where:
        node = node[key]
    assert node == value
    assert type(node) is type(value)
    assert repr(CONFIG) == before


def test_overriding_a_type_keeps_only_what_the_new_class_takes_in_any_order() -> None:
    start = {"energy": {"type": NET, "channels": 3, "depth": 9}}
    for texts in (["energy.width=2", f"energy.type={WIDE}"], [f"energy.type={WIDE}", "energy.width=2"]):
        assert config.override(start, texts) == {"energy": {"type": WIDE, "channels": 3, "width": 2}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("energy.chanels=3", ["energy.chanels", "did you mean 'channels'?"]),
        ("enregy.channels=3", ["enregy", "did you mean 'energy'?"]),
        ("lr.x=3", ["lr.x", "as 'lr' is"]),
        ("energy.depth.x=3", ["energy.depth"]),
        ("parts.1.width=3", ["parts.1"]),
        ("energy.type=os:system", ["energy.type", "refused"]),
        ("energy.type=[1]", ["energy.type"]),
        ("data={type: os:system}", ["data.type", "refused"]),
        *[(text, ["must be an assignment"]) for text in ("lr", "=3", ".lr=3", "a..b=3")],
        ("lr=", ["lr=null"]),
        ("lr=[1,", ["lr="]),
        ("lr=&a [*a]", ["aliases"]),
        ("lr=!!python/object/apply:os.system [ls]", ["lr=", "constructor"]),
    ],
)
def test_bad_overrides_are_user_errors(text: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        config.override(CONFIG, [text])
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_infinity_has_a_plain_form_that_is_built_back() -> None:
    tree = {"energy": {"type": NET, "shape": (math.inf, [-math.inf, 1.5])}, "name": "inf"}
    kept = config.plain(tree)
    assert kept == {"energy": {"type": NET, "shape": [".inf", ["-.inf", 1.5]]}, "name": "inf"}
    assert json.loads(json.dumps(kept, allow_nan=False)) == kept == config.plain(kept)
    assert config.build(kept["energy"]).shape == [math.inf, [-math.inf, 1.5]]
    with pytest.raises(UserError, match=r"^energy\.shape\.0=nan"):
        config.plain({"energy": {"shape": [math.nan]}})


def test_yaml_is_plain_data(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("lr: 1e-3\nenergy: {type: 'a:B'}\n")
    assert recipes.load_yaml(path) == recipes.read_recipe(str(path)) == {"lr": 1e-3, "energy": {"type": "a:B"}}
    cases = (
        "- 1",
        "",
        "a: 1\na: 2",
        "a: &x 1\nb: *x",
        "a: [",
        "a: !!python/name:os.system",
        "a: " + "[" * 9999,
    )
    for text in cases:
        path.write_text(text)
        with pytest.raises(UserError, match=r"run\.yaml"):
            recipes.load_yaml(path)
    path.write_bytes(b"a: \xff\xfe")
    for bad in (path, tmp_path, tmp_path / "none.yaml"):
        with pytest.raises(UserError, match="cannot be read"):
            recipes.load_yaml(bad)


def test_an_unknown_recipe_lists_those_that_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mnist.yaml").write_text("seed: 1\n")
    (tmp_path / "secret.yaml").write_text("seed: 2\n")
    monkeypatch.setattr(recipes, "files", lambda _: tmp_path)
    assert recipes.read_recipe("mnist") == {"seed": 1}
    for name in ("minst", "../secret", "recipes/mnist", ""):
        with pytest.raises(UserError, match="mnist"):
            recipes.read_recipe(name)


def test_a_recipe_takes_over_another_one_section_by_section(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: pcd-image\nenergy: {type: 'a:B'}\n")
    base = recipes.read_recipe("pcd-image")
    assert recipes.read_recipe(str(path)) == {**base, "energy": {"type": "a:B"}}
    for bad in ("nothing", "[pcd-image]", str(path)):
        path.write_text(f"base: {bad}\n")
        with pytest.raises(UserError, match=r"nothing|base="):
            recipes.read_recipe(str(path))


def test_importing_config_does_not_import_torch() -> None:
    code = "import sys, thalweg.core.config, thalweg.core.store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=dict(os.environ), check=False).returncode == 0
