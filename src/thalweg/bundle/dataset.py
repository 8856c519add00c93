"""The data of a run, read again: what a bundle's config names, seen to be what it was trained on."""

from thalweg.bundle.bundle import Bundle
from thalweg.core.errors import UserError
from thalweg.data.catalog import Dataset, load


def data_of(bundle: Bundle) -> Dataset:
    """The run's data set, split as in its training. UserError where the data cannot be found or have changed."""
    spec = bundle.config["run"]["data"]
    data = load(
        spec["name"],
        data=spec["path"],
        hub=spec["hub"],
        seed=bundle.config["run"]["seed"],
        held_out=spec["held_out"],
        limit=spec["limit"],
        header=spec["header"],
        drop=spec["drop"],
    )
    if data.fingerprint != bundle.config["data"]["fingerprint"]:
        raise UserError(
            f"{bundle.path}: the data are not those of the run ({data.source}); put back those it was trained on"
        )
    return data
