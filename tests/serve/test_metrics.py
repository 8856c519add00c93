"""Figures that operators see (trust row R28) and what they say of a model."""

import numpy as np
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from thalweg.apps.anomaly.calibration import Calibration
from thalweg.serve.engine.engine import EngineState
from thalweg.serve.metrics import MOST_ROUTES, OTHER, Metrics
from thalweg.serve.model_watch import ROWS, ModelWatch, uniformity
from thalweg.serve.operations import operations

from .engine_fakes import Sums


class Normal(Sums):
    """Calibrated by 500 normal energies."""

    flag_rate = 0.05

    def __init__(self):
        super().__init__()
        self.calibration_energies = np.random.default_rng(0).normal(size=500)

    def scored(self, seed, rows, shift=0.0):
        energy = np.random.default_rng(seed).normal(shift, size=rows)
        return {"energy": energy, "p_value": Calibration(self.calibration_energies).p_values(energy).astype(np.float32)}


def values(metrics, name):
    found = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            if sample.name == name:
                found[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def test_counters_are_exact():
    """R28."""
    metrics, told = Metrics(), {}
    generator = np.random.default_rng(0)
    for _ in range(500):
        route, code = f"/r{generator.integers(3)}", int(generator.choice([200, 422, 429]))
        told[route, code] = told.get((route, code), 0) + 1
        metrics.request(route, code, 0.01)
    found = values(metrics, "thalweg_requests_total")
    assert {(dict(key)["route"], int(dict(key)["code"])): value for key, value in found.items()} == told
    assert sum(values(metrics, "thalweg_request_seconds_count").values()) == 500


def test_clients_make_no_labels():
    """R28: routes beyond the service's own are one; reasons are a fixed set."""
    metrics = Metrics()
    for number in range(5000):
        metrics.request(f"/made-up/{number}", 404, 0.01)
        metrics.rejected(f"reason-{number}")
    routes = {dict(key)["route"] for key in values(metrics, "thalweg_requests_total")}
    assert len(routes) == MOST_ROUTES + 1
    assert OTHER in routes
    assert values(metrics, "thalweg_rejected_total")[(("reason", OTHER),)] == 5000


def test_requests_in_progress():
    metrics = Metrics()
    with metrics.in_progress():
        assert list(values(metrics, "thalweg_requests_in_progress").values()) == [1]
    assert list(values(metrics, "thalweg_requests_in_progress").values()) == [0]


def test_rows_that_are_not_finite_are_counted_and_left_out():
    metrics, model = Metrics({"m": "7"}), Normal()
    metrics.watch("m", model)
    found = model.scored(1, 10)
    found["energy"][[2, 5]] = np.nan, np.inf
    metrics.scored("m", found)
    assert values(metrics, "thalweg_non_finite_total") == {(("model", "m"),): 2}
    assert values(metrics, "thalweg_watched_rows") == {(("model", "m"),): 8}
    assert dict(*values(metrics, "thalweg_model_info"))["version"] == "7"


def test_the_flagged_share_is_that_of_recent_rows_at_the_promised_rate():
    model = Normal()
    watch = ModelWatch(model)
    watch.update(model.scored(1, 300, shift=9.0))
    watch.update(model.scored(2, ROWS))  # pushes them out
    watch.flush()
    figures = watch.figures()
    p = model.scored(2, ROWS)["p_value"]
    assert figures["thalweg_flagged_share"] == pytest.approx((p <= 0.05).mean())
    assert figures["thalweg_flagged_share_low"] < 0.05 < figures["thalweg_flagged_share_high"]
    watch.update(model.scored(3, 500, shift=9.0))
    watch.flush()
    assert watch.figures()["thalweg_flagged_share_low"] > 0.05


def test_p_values_of_normal_rows_are_on_their_grid():
    """Few calibration rows: p-values are far from uniform on [0, 1], and exactly so on their grid.

    1,000 calibrations and samples, level 0.05: rejections 50 at most of a cautious test, + 4 standard deviations. A
    shift of one standard deviation is seen.
    """
    generator, rejected = np.random.default_rng(4), 0
    for _ in range(1000):
        calibration = Calibration(generator.normal(size=9))
        rejected += uniformity(calibration.p_values(generator.normal(size=300)), calibration).p_value < 0.05
    assert rejected <= 50 + 4 * np.sqrt(1000 * 0.05 * 0.95)
    calibration = Calibration(generator.normal(size=500))
    assert uniformity(calibration.p_values(generator.normal(1, size=300)), calibration).p_value < 1e-6
    assert uniformity(generator.random(300), None).p_value > 0.01
    assert uniformity(generator.random(300) ** 2, None).p_value < 1e-6


def test_ties_of_the_calibration_are_no_deviation():
    generator = np.random.default_rng(5)
    calibration = Calibration(generator.integers(0, 3, 600).astype(float))
    found = uniformity(calibration.p_values(generator.integers(0, 3, 500).astype(float)), calibration)
    assert found.p_value > 0.01


def test_the_drift_alarm_is_silent_until_energies_move():
    model = Normal()
    watch = ModelWatch(model)
    for seed in range(20):
        watch.update(model.scored(seed, 250))
    watch.flush()
    assert watch.figures()["thalweg_drift_alarm"] == 0
    for seed in range(8):
        watch.update(model.scored(seed, 250, shift=1.0))
    watch.flush()
    assert watch.figures()["thalweg_drift_alarm"] == 1
    for seed in range(20):
        watch.update(model.scored(seed, 250))
    watch.flush()
    assert watch.figures()["thalweg_drift_alarm"] == 1  # it stays


def test_a_model_without_calibration_has_no_such_figures():
    metrics = Metrics()
    metrics.watch("m", Sums())
    metrics.scored("m", {"energy": np.ones(3), "flag": np.zeros(3, bool)})
    assert values(metrics, "thalweg_drift_alarm") == {}
    assert values(metrics, "thalweg_flagged_share") == {}


@pytest.mark.parametrize(
    ("state", "live", "ready"),
    [
        (EngineState(True, True, ""), 200, 200),
        (EngineState(False, True, "loading"), 200, 503),
        (EngineState(False, True, "full"), 200, 503),
        (EngineState(False, True, "draining"), 200, 503),
        (EngineState(False, False, "a worker is stuck for 31 s"), 503, 503),
    ],
    ids=["good", "loading", "full", "draining", "stuck"],
)
def test_what_an_orchestrator_is_told(state, live, ready):
    """R27."""

    class Standing:
        def state(self):
            return state

    app = FastAPI()
    app.include_router(operations(Standing(), Metrics()))
    client = TestClient(app)
    assert (client.get("/livez").status_code, client.get("/readyz").status_code) == (live, ready)
    assert client.get("/readyz").text == (state.reason or "ok")
    assert b"thalweg_queue_depth" in client.get("/metrics").content
