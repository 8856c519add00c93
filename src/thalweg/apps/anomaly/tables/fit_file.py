"""Fits a detector to a table in a file."""

from typing import Any

import numpy as np

from thalweg.apps.anomaly.detector import EnergyDetector
from thalweg.apps.anomaly.saved import DetectorBundle
from thalweg.apps.anomaly.tables.training_rows import Source, draw
from thalweg.core.errors import UserError
from thalweg.data.columns.contents import learn
from thalweg.data.tables import open_table


def fit_file(source: Source, **parameters: Any) -> DetectorBundle:
    """A detector of the table's rows; `parameters` are `EnergyDetector`'s. UserError for what cannot be used.

    `about["columns"]` of the bundle says what the columns hold.
    """
    detector = EnergyDetector(random_state=source.seed, **parameters)
    table = open_table(source.path, header=source.header)
    where, ignored = str(table.path), [*source.drop, *([source.target] if source.target else [])]
    table.require(ignored)
    if source.normal is not None and source.target is None:
        hint = "name the column of labels"
        raise UserError("must come with a target column", argument="normal", value=source.normal, hint=hint)
    reading = detector.reading
    drawn = draw(table, source, reading.words(table.is_text))
    kept = drawn.frame.select([name for name in table.names if name not in ignored])
    try:
        with table.naming_rows():
            contents = learn(kept, reading, where=where, parse=table.is_text, rows=drawn.rows.tolist())
            detector.fit(contents)
    except UserError as error:
        if error.argument != "X":
            raise
        raise error.replace(argument=where) from error
    used = int((~np.isnan(contents.x).any(1)).sum())
    about = {"table": table.path.name, "header": not table.headless, "rows": drawn.num_available, "rows_used": used}
    about |= {"ignored": ignored, "seed": source.seed, "columns": contents.to_dict()}
    return DetectorBundle(detector, about)
