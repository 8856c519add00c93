"""A detector on disk: `config.json`, `model.safetensors`, `calibration.safetensors`, sealed by a manifest; no pickle.

`thalweg.load` opens it, as its config.json names `DetectorBundle`. Only the energy classes of this package are ever
built from it.
"""

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from thalweg.apps.anomaly.calibration import Calibration, LeaveOneOut, check_rate
from thalweg.apps.anomaly.detector import EnergyDetector
from thalweg.apps.anomaly.energies import KINDS, energy_class
from thalweg.apps.anomaly.missing import PartialRows
from thalweg.apps.anomaly.served import ServedDetector
from thalweg.bundle.files import StoredType, heading, holds, require_sealed
from thalweg.bundle.servable import Servable
from thalweg.core import state_tree, store
from thalweg.core.device import CPU
from thalweg.core.errors import DamagedFile, UserError
from thalweg.data.columns.encoding import Columns
from thalweg.data.columns.reading_options import Reading

OWN = ("config.json", "model.safetensors", "calibration.safetensors", store.MANIFEST)
UNBOUNDED = "search."  # parameters of the search among stored rows: infinite where it has no bound
PLAIN = ("kind", "contamination", "false_alarm_rate", "missing", "calibration", "held_out", "options")


class DetectorBundle(StoredType):
    """A fitted detector and what it was fitted on. Made by `thalweg.load` or `DetectorBundle(detector)`."""

    title, command = "a detector", "thalweg detect score"

    def __init__(self, detector: EnergyDetector, about: dict[str, Any] | None = None, path: Path | None = None):
        self.detector, self.about, self.path = detector, about or {}, path

    @classmethod
    def read(cls, folder: Path, config: dict[str, Any]) -> Self:
        """The detector in a folder of verified files; DamagedFile where they are not what was written."""
        require_sealed(folder)
        tensors = store.read_tensors(folder / "model.safetensors")
        arrays = _arrays(store.read_tensors(folder / "calibration.safetensors"))
        _require_finite(arrays, folder / "calibration.safetensors")
        try:
            if config["parameters"]["kind"] not in KINDS:
                raise ValueError("kind")
            tree = state_tree.unflatten(tensors, config["structure"])
            _require_finite(_arrays(tree["energy"]), folder / "model.safetensors")
            return cls(_detector(config, tree, _calibration(config, arrays)), config["about"], folder)
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            message = f"must be the configuration of a detector ({error!r})"
            raise DamagedFile(message, argument=str(folder / "config.json")) from error

    def to(self, device: str | torch.device) -> Self:
        """The bundle itself, whose energies are computed on a device from now on."""
        self.detector.to(device)
        return self

    def servable(self) -> Servable:
        return ServedDetector(self)

    def energy(self, x: Any) -> Tensor:
        """E(x), (B,) nats, float64; x as the detector takes it, and the result where x lies."""
        return torch.from_numpy(self.detector.energy(x)).to(_device_of(x))

    def score(self, x: Any, *, alpha: float | None = None) -> dict[str, Tensor]:
        """energy, p_value and flag = p_value <= alpha, (B,) each, where x lies; alpha is `rate_` if not given."""
        check_is_fitted(self.detector)
        alpha = self.detector.rate_ if alpha is None else check_rate(alpha, "alpha")
        u = self.detector.energy(x)
        p = self.detector.calibration_.p_values(u)
        found = {"energy": u, "p_value": p, "flag": p <= alpha}
        return {name: torch.from_numpy(a).to(_device_of(x)) for name, a in found.items()}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the bundle, whole or not at all, in place of an earlier one. A link to a folder stays a link.

        UserError where the folder holds anything that is not a detector's, as it is replaced whole.
        """
        check_is_fitted(self.detector)
        folder = replaceable(folder)
        tensors, config = _state(self.detector)
        config = heading(DetectorBundle) | config | {"about": self.about}

        def write(aside: Path) -> None:
            store.write_json(aside / "config.json", config)
            store.write_tensors(aside / "model.safetensors", tensors)
            store.write_tensors(aside / "calibration.safetensors", _calibration_tensors(self.detector.calibration_))

        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"must be a folder that can be made ({error.strerror})"
            raise UserError(message, argument=str(folder), hint="name another folder") from error
        store.save_folder(folder, write)


def _device_of(x: Any) -> torch.device:
    return x.device if isinstance(x, Tensor) else CPU


def replaceable(folder: str | Path) -> Path:
    """The folder, links resolved, in whose place a detector may be put. UserError where that would lose anything."""
    given = Path(folder)
    folder = given.resolve()  # a link may not be replaced by what is put in its place
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return folder
    if not folder.is_dir() or not holds(folder, DetectorBundle):
        raise UserError("must be empty or hold a detector", argument=str(given), hint="name another folder")
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in OWN)
    if foreign:
        message = f"must hold nothing beside a detector, as the folder is replaced, and holds {foreign[0]!r}"
        raise UserError(message, argument=str(given), hint="move it away, or name another folder")
    return folder


def _state(detector: EnergyDetector) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, and what JSON holds."""
    energy = {name: _tensor(value) for name, value in detector.energy_.state().items()}
    tree: dict[str, Any] = {"energy": energy, "train_scores": _tensor(detector.train_scores_)}
    if detector.partial_ is not None:
        tree |= {"rows": _tensor(detector.partial_.rows), "center": _tensor(detector.partial_.center)}
    tensors, structure = state_tree.flatten(tree)
    given, learned = detector.get_params(deep=False), vars(detector)  # scikit-learn sets names and number of features
    names = learned.get("feature_names_in_")
    parameters = {name: given[name] for name in PLAIN} | {"kind": detector.kind_, "missing": detector.missing_}
    config = {
        "parameters": _plain(parameters),
        "rate": detector.rate_,
        "leave_one_out": detector.calibration_.left_out is not None,
        "random_state": _seed(detector.random_state),
        "offset": detector.offset_,
        "num_features": learned.get("n_features_in_"),
        "features": None if names is None else [str(name) for name in names],
        "columns": None if detector.columns_ is None else detector.columns_.to_list(),
        "reading": None if detector.columns_ is None else detector.columns_.reading.to_dict(),
        "left_out": [] if detector.columns_ is None else [list(pair) for pair in detector.columns_.left_out],
        "structure": structure,
    }
    return tensors, config


def _calibration_tensors(calibration: Calibration) -> dict[str, Tensor]:
    """The energies; and what else is known of those left out, where rows repeat."""
    tensors, left_out = {"energy": _tensor(calibration.energies)}, calibration.left_out
    if left_out is not None and ((left_out.equals != left_out.energies).any() or (left_out.counts > 1).any()):
        tensors |= {f"left_out.{name}": _tensor(value) for name, value in left_out._asdict().items()}
    return tensors


def _calibration(config: dict[str, Any], arrays: dict[str, np.ndarray]) -> Calibration:
    energies = arrays["energy"]
    if not config["leave_one_out"]:
        return Calibration(energies)
    own, equals = arrays.get("left_out.energies", energies), arrays.get("left_out.equals", energies)
    counts = arrays.get("left_out.counts", np.ones(len(energies), int))
    return Calibration(energies, LeaveOneOut(own, equals, counts))


def _require_finite(arrays: dict[str, np.ndarray], file: Path) -> None:
    """DamagedFile where a number is not: what is computed from it could be anything, and an error at any place."""
    known = {name: a for name, a in arrays.items() if a.dtype.kind == "f" and not name.startswith(UNBOUNDED)}
    name = next((name for name, a in known.items() if not np.isfinite(a).all()), None)
    if name is not None:
        raise DamagedFile(f"must hold finite numbers, and {name} holds others", argument=str(file), hint=store.REMEDY)


def _detector(config: dict[str, Any], tree: dict[str, Any], calibration: Calibration) -> EnergyDetector:
    reading = config.get("reading") or {}  # none in a detector of arrays
    detector = EnergyDetector(**{name: config["parameters"][name] for name in PLAIN}, **reading)
    detector.random_state = config.get("random_state")
    detector.energy_ = energy_class(detector.kind).from_state(_arrays(tree["energy"]))
    detector.train_scores_ = tree["train_scores"].numpy()
    detector.calibration_ = calibration
    detector.columns_ = None
    if config["columns"] is not None:
        left_out = config.get("left_out", ())
        detector.columns_ = Columns.from_list(config["columns"], Reading.from_dict(reading), left_out)
    detector.partial_ = None
    if "rows" in tree:
        detector.partial_ = PartialRows(tree["rows"].numpy(), detector.calibration_, tree["center"].numpy())
    detector.offset_ = float(config["offset"])
    detector.kind_, detector.missing_ = detector.kind, detector.missing
    detector.rate_ = check_rate(config["rate"], "rate")
    if config["num_features"] is not None:
        detector.n_features_in_ = int(config["num_features"])
    if config["features"] is not None:
        detector.feature_names_in_ = np.array(_names(config["features"], detector.columns_), dtype=object)
    return detector


def _names(features: Any, columns: Columns | None) -> list[str]:
    """The stored names of the columns, which scikit-learn compares with those of later tables."""
    if not isinstance(features, list) or not all(isinstance(name, str) for name in features):
        raise ValueError("features")
    if columns is not None and features != list(columns.names):
        raise ValueError("features")
    return features


def _seed(random_state: Any) -> int | None:
    """A number; no generator is kept."""
    number = isinstance(random_state, int | np.integer) and not isinstance(random_state, bool)
    return int(random_state) if number else None


def _plain(value: Any) -> Any:
    """The same with Python's numbers for numpy's."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value.item() if isinstance(value, np.generic) else value


def _tensor(a: Any) -> Tensor:
    return torch.from_numpy(np.array(a))  # a copy, writable and in order


def _arrays(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in tensors.items()}
