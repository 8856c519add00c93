"""Whose classes a config may name: packages that declare themselves or that the user names, and nothing else."""

import sys
from pathlib import Path

import pytest

from thalweg.core import config, trust
from thalweg.core.errors import UserError
from thalweg.core.trust import trusted_packages, trusting

# Its import leaves a file, so that a test sees whether any code ran.
MODULE = """
from pathlib import Path
from fractions import Fraction
from torch import nn
Path(__file__).with_suffix(".imported").touch()

class Net:
    def __init__(self, width: int = 3): self.width = width

class Thin(nn.Module):
    def __init__(self, width: int = 3, part=None): super().__init__()

Alias = Net
"""
NAMES = ("stranger", "declared", "stranger_too")


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Modules of strangers on the path, of which nobody has declared any; whether any was imported."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda: sorted(path.stem for path in tmp_path.glob("*.imported"))
    for name in NAMES:
        sys.modules.pop(name, None)


def declare(folder: Path, monkeypatch: pytest.MonkeyPatch, *values: str) -> None:
    """Install a distribution with these entry points, as pip leaves it."""
    info = folder / "site" / "plugin-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    lines = [f"part{i} = {value}" for i, value in enumerate(values)]
    (info / "entry_points.txt").write_text("\n".join([f"[{trust.GROUP}]", *lines, ""]))
    monkeypatch.syspath_prepend(folder / "site")


def refused(name: object) -> UserError:
    """The error of `build`, `check` and `override` for a class, which is one."""
    texts: set[str] = set()
    for act in (config.build, config.check):
        with pytest.raises(UserError) as caught:
            act({"type": name}, "energy")
        texts.add(str(caught.value))
    with pytest.raises(UserError) as caught:
        config.override({"energy": {"type": "thalweg.energy.networks.mlp:MLPEnergy"}}, [f"energy.type={name}"])
    assert {*texts, str(caught.value)} == {str(caught.value)}
    assert caught.value.argument == "energy.type"
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("fault", ["import no_such_thing", "1 / 0", "def (", "from torch import nothing_of_the_kind"])
def test_a_module_that_cannot_be_imported_is_one_line(modules, tmp_path: Path, fault: str) -> None:
    (tmp_path / "stranger.py").write_text(f"\n{fault}\n")
    with trusting("stranger"):
        error = refused("stranger:Net")
    assert "stranger" in error.message
    assert "no_such_thing" in str(error) or "line 2" in str(error)


def test_a_class_of_nobodys_package_is_refused_before_the_import(modules) -> None:
    error = refused("stranger:Net")
    assert "--trust stranger" in str(error.hint)
    assert 'trust=("stranger",)' in str(error.hint)
    assert modules() == []


@pytest.mark.parametrize("name", ["os:system", "subprocess:Popen", "torch.nn:Linear", "thalweg.core.store:Path"])
def test_no_remedy_is_told_where_there_is_none(name: str) -> None:
    assert refused(name).hint is None


def test_a_named_package_is_trusted_as_long_as_the_context_lasts(modules) -> None:
    with trusting("stranger"):
        assert "stranger" in trusted_packages()
        built = config.build({"type": "stranger:Net", "width": 4})
        config.check({"type": "thalweg.energy.wrappers:Sum", "energies": [{"type": "stranger:Net"}]})
        assert refused("stranger_too:Net")
    assert built.width == 4
    assert "stranger" not in trusted_packages()
    assert refused("stranger:Net")
    assert modules() == ["stranger"]


def test_contexts_lie_within_each_other(modules) -> None:
    with trusting("stranger"), trusting("stranger_too"):
        assert {"stranger", "stranger_too"} <= {*trusted_packages()}
    with trusting("stranger"), pytest.raises(ZeroDivisionError), trusting("stranger_too"):
        raise ZeroDivisionError
    assert not {"stranger", "stranger_too"} & {*trusted_packages()}


def test_an_installed_package_declares_itself(modules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(tmp_path, monkeypatch, "declared")
    assert "declared" in trusted_packages()
    assert modules() == [], "the metadata alone are read"
    assert config.build({"type": "declared:Net"}).width == 3
    assert refused("stranger:Net")
    assert modules() == ["declared"]


def test_metadata_in_the_current_folder_are_no_installation(
    modules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(tmp_path, monkeypatch, "declared")
    monkeypatch.chdir(tmp_path / "site")
    for entry in ("", ".", str(tmp_path / "site")):
        monkeypatch.setattr(sys, "path", [entry, *(path for path in sys.path if Path(path).name != "site")])
        assert refused("declared:Net").hint is not None
    assert modules() == []


def test_what_may_not_be_trusted_cannot_be_declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = ("os", "subprocess", "torch.nn", "builtins", "thalweg.core", "__main__", "..", "a b", "fine.part:attr")
    declare(tmp_path, monkeypatch, *values)
    assert trusted_packages() == ("fine.part",)


@pytest.mark.parametrize("name", ["stranger:Fraction", "stranger:Path", "stranger:nn", "stranger:Nothing"])
def test_what_a_trusted_package_imports_from_elsewhere_is_refused(modules, name: str) -> None:
    with trusting("stranger"):
        refused(name)


@pytest.mark.parametrize(
    "name", ["stranger:Alias", "stranger:Net.width", "stranger.:Net", ".stranger:Net", "__main__:X"]
)
def test_tricks_with_names_are_refused(modules, name: str) -> None:
    with trusting("stranger"):
        refused(name)


def test_trust_is_of_whole_names(modules, tmp_path: Path) -> None:
    with trusting("stranger"):
        refused("stranger_too:Net")
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "nets.py").write_text(MODULE)
    (tmp_path / "lab" / "other.py").write_text(MODULE)
    with trusting("lab.nets"):
        assert config.build({"type": "lab.nets:Net"}).width == 3
        refused("lab.other:Net")
        refused("lab:Net")
    assert not (tmp_path / "lab" / "other.imported").exists()


@pytest.mark.parametrize(
    "name",
    [
        *("os", "builtins", "sys", "importlib", "torch", "torch.nn", "numpy", "thalweg", "thalweg.core", "pip", "yaml"),
        *("__main__", "", ".", "a b", "stranger:Net", "../stranger", "no_such_package_anywhere", None, 3),
    ],
)
def test_names_that_cannot_be_trusted_are_told_in_one_line(modules, name: object) -> None:
    with pytest.raises(UserError) as caught, trusting(name):  # pyright: ignore[reportArgumentType]
        pass
    assert caught.value.argument == "trust"
    assert "\n" not in str(caught.value)
    assert modules() == []


def test_one_text_is_no_list_of_names() -> None:
    for value in ("stranger", None, 3):
        with pytest.raises(UserError) as caught:
            trust.as_names(value)  # pyright: ignore[reportArgumentType]
        assert caught.value.argument == "trust"


def test_the_current_folder_is_looked_in_for_the_named_module_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("lies_here", "lies_beside"):
        (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    before = [*sys.meta_path]
    with trusting("lies_here"):
        assert config.build({"type": "lies_here:Net"}).width == 3
        with pytest.raises(ModuleNotFoundError):
            import lies_beside  # noqa: F401  # pyright: ignore[reportMissingImports]
    assert sys.meta_path == before
    sys.modules.pop("lies_here")
    with pytest.raises(ModuleNotFoundError):
        import lies_here  # noqa: F401  # pyright: ignore[reportMissingImports]


def test_no_metadata_are_read_where_no_spec_names_a_foreign_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.distributions", lambda **_: pytest.fail("the metadata were read"))
    trust._declared.cache_clear()
    config.check({"type": "thalweg.energy.networks.mlp:MLPEnergy"})
