"""Score tables: one row an input, in CSV, Parquet or npy."""

import csv
import io
from pathlib import Path

import numpy as np
from torch import Tensor

from thalweg.core.errors import UserError
from thalweg.core.store import write_bytes


def write_scores(path: Path, names: list[str], scores: dict[str, Tensor]) -> None:
    """Write name, energy, log_prob, p_value and flag (those there are) by the ending of `path`; whole or not at all."""
    columns = {"name": names, **{key: value.tolist() for key, value in scores.items()}}
    suffix = path.suffix.lower()
    held = io.BytesIO()
    if suffix == ".csv":
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        held.write(text.getvalue().encode("utf-8", "backslashreplace"))
    elif suffix == ".npy":
        np.save(held, scores["energy"].numpy(), allow_pickle=False)
    elif suffix == ".parquet":
        try:
            import pandas as pd

            pd.DataFrame(columns).to_parquet(held, index=False)
        except ImportError as error:
            raise UserError(f"{path}: Parquet needs `pip install thalweg[images]`, or write .csv") from error
    else:
        raise UserError(f"{path}: cannot write {suffix or 'a file without ending'}; want .csv, .parquet or .npy")
    write_bytes(path, held.getvalue())
