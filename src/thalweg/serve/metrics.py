"""What operators see: counts and times of requests, of batches, and of what only this service can say of its models.

Labels are route templates, status codes, reasons and names of models, so that no client can make new ones.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from thalweg.bundle.servable import Servable
from thalweg.serve.engine.rejected import REASONS
from thalweg.serve.model_watch import ModelWatch

log = logging.getLogger("thalweg.serve")
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
MOST_ROUTES = 40  # label values of a route; further ones are "other"
OTHER = "other"
WATCHED = {
    "thalweg_flag_rate": "The promised share of normal rows that is flagged",
    "thalweg_flagged_share": "The share of recent rows with a p-value at or below the promised rate",
    "thalweg_flagged_share_low": "Lower end of a 99 % interval for it (Clopper & Pearson)",
    "thalweg_flagged_share_high": "Upper end of a 99 % interval for it (Clopper & Pearson)",
    "thalweg_p_value_uniformity": "Distance of recent p-values from their law on normal rows, in [0, 1]",
    "thalweg_p_value_uniformity_p": "Kolmogorov-Smirnov p-value of that distance",
    "thalweg_watched_rows": "Recent rows that these figures are of",
    "thalweg_drift_alarm": "1 once energies have left the law of the calibration; false with probability .01 at most",
}


class Metrics:
    """One registry of its own.

    Args:
        versions: Of models, by name, for `thalweg_model_info`.
    """

    def __init__(self, versions: Mapping[str, str] | None = None):
        self.versions = dict(versions or {})
        self.registry = CollectorRegistry()
        self.watches: dict[str, ModelWatch] = {}
        self.registry.register(_Watched(self.watches))
        own = self.registry
        self._requests = Counter("thalweg_requests", "Answers", ["route", "code"], registry=own)
        self._seconds = Histogram(
            "thalweg_request_seconds", "From request to answer", ["route"], buckets=SECONDS, registry=own
        )
        self.running = 0  # requests without an answer so far
        in_progress = Gauge("thalweg_requests_in_progress", "Requests without an answer so far", registry=own)
        in_progress.set_function(lambda: self.running)
        self._rejected = Counter("thalweg_rejected", "Requests that were not computed", ["reason"], registry=own)
        self._depth = Gauge("thalweg_queue_depth", "Rows that wait", registry=own)
        self._rows = Histogram("thalweg_batch_rows", "Rows of a call", ["model"], buckets=ROWS, registry=own)
        self._inference = Histogram("thalweg_inference_seconds", "Of a call", ["model"], buckets=SECONDS, registry=own)
        self._wasted = Counter(
            "thalweg_wasted_batches", "Calls for requests that had all left or expired", registry=own
        )
        self._non_finite = Counter("thalweg_non_finite", "Rows whose scores are not finite", ["model"], registry=own)
        self._info = Gauge("thalweg_model_info", "1", ["model", "version", "content", "title"], registry=own)
        self._reasons = {reason: self._rejected.labels(reason) for reason in REASONS}
        self._routes: dict[str, Histogram] = {}
        self._calls: dict[str, tuple[Histogram, Histogram]] = {}
        self._codes: dict[tuple[str, int], Counter] = {}

    def request(self, route: str, code: int, seconds: float) -> None:
        """An answer. `route` is the template of its route."""
        histogram = self._routes.get(route)
        if histogram is None:
            route = route if len(self._routes) < MOST_ROUTES else OTHER
            histogram = self._routes.setdefault(route, self._seconds.labels(route))
        counter = self._codes.get((route, code))
        if counter is None:
            counter = self._codes.setdefault((route, code), self._requests.labels(route, str(code)))
        counter.inc()
        histogram.observe(seconds)

    @contextmanager
    def in_progress(self) -> Iterator[None]:
        """A request on its way."""
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1

    def rejected(self, reason: str) -> None:
        """A request that is not computed."""
        (self._reasons.get(reason) or self._rejected.labels(OTHER)).inc()

    def depth(self, rows: Callable[[], int]) -> None:
        """Where to read how many rows wait."""
        self._depth.set_function(rows)

    def watch(self, model: str, servable: Servable) -> None:
        """A model that is served."""
        self.watches[model] = ModelWatch(servable)
        self._info.labels(model, self.versions.get(model, "1"), servable.content, servable.title).set(1)
        self._non_finite.labels(model)

    def computed(self, model: str, rows: int, seconds: float) -> None:
        """A call of a model."""
        both = self._calls.get(model)
        if both is None:
            both = self._calls.setdefault(model, (self._rows.labels(model), self._inference.labels(model)))
        both[0].observe(rows)
        both[1].observe(seconds)

    def wasted(self, model: str) -> None:
        """A call that was made for nobody."""
        self._wasted.inc()

    def scored(self, model: str, found: Mapping[str, np.ndarray]) -> None:
        """What a model gave."""
        self._look(model, lambda watch: watch.update(found))

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        for model in list(self.watches):
            self._look(model, ModelWatch.flush)
        return generate_latest(self.registry)

    def _look(self, model: str, look: Callable[[ModelWatch], int]) -> None:
        """Count rows that are not finite. No odd answer may end the worker that reports it, or hold up the others'."""
        try:
            rows = look(self.watches[model])
        except Exception:
            log.exception("model %s: some answers are in no figure", model)
            return
        if rows:
            self._non_finite.labels(model).inc(rows)


class _Watched(Collector):
    """The figures of models, computed when they are asked for."""

    def __init__(self, watches: Mapping[str, ModelWatch]):
        self.watches = watches

    def collect(self) -> Iterator[Metric]:
        families = {name: GaugeMetricFamily(name, text, labels=["model"]) for name, text in WATCHED.items()}
        for model, watch in list(self.watches.items()):
            for name, value in watch.figures().items():
                if not math.isnan(value):
                    families[name].add_metric([model], value)
        yield from families.values()
