"""Columns that only count rows or tell the time are told from measurements, by rules that are tried from both sides."""

import numpy as np
import pytest

from thalweg.data.columns.counters import verdict

N = 300
SHUFFLED = np.random.default_rng(1).permutation(N)
START = 1_706_745_600  # 2024-02-01 in seconds since 1970
DAYS = np.datetime64("2024-01-20") + np.arange(N) // 4
CALENDAR = np.array([int(str(day).replace("-", "")) for day in DAYS], float)
MONTHS = np.array([202301 + i % 12 + 100 * (i // 150) for i in range(N)], float)


def draws(seed=0):
    return np.random.default_rng(seed)


def act(values, name="v", rows=None, first=False):
    values = np.asarray(values, float)
    found = verdict(values, name, range(len(values)) if rows is None else rows, first=first)
    return found and found.action


COUNTERS = {
    "from 1": 1 + np.arange(N),
    "from elsewhere": 73_214 + np.arange(N),
    "downwards": N - np.arange(N),
    "by ten": 10 * np.arange(N),
    "every minute": START + 60 * np.arange(N),
    "shuffled": SHUFFLED,
    "shuffled, by a thousand": 1000 * SHUFFLED,
    "a part of a shuffled table": draws().permutation(10 * N)[:N],
    "in order, with holes": np.sort(draws().permutation(10 * N)[:N]),
    "a meter": np.cumsum(draws().integers(1, 9, N)),
    "with gaps": np.where(np.arange(N) % 7, np.arange(N), np.nan),
    "ten rows": np.arange(10),
}
MEASURES = {
    "few whole numbers": draws().integers(0, 10, N),
    "as many whole numbers as rows": draws().integers(0, N, N),
    "whole numbers that hardly repeat": draws().integers(0, N * N // 5, N),
    "whole numbers of a wide range": draws().integers(0, 10**9, N),
    "rounded to hundreds": np.round(draws().gamma(2, 2e4, N), -2),
    "fractions": draws().normal(50, 5, N),
    "a walk": np.cumsum(draws().integers(-3, 4, N)),
    "a rise with noise": np.linspace(20, 30, N) + draws().normal(0, 1, N),
    "years": 2010 + draws().integers(0, 14, N),
    "hours, again and again": np.arange(N) % 24,
    "constant": np.full(N, 7.0),
    "nine rows": np.arange(9),
    "numbers of eight digits": draws().integers(19_000_000, 21_000_000, N),
    "numbers of six digits": draws().integers(190_000, 210_000, N),
    "numbers below the times": draws().normal(8e8, 1e7, N),
    "numbers around the first time": draws().normal(946_684_800, 1e7, N),
    "every value missing": np.full(N, np.nan),
}


@pytest.mark.parametrize("name", COUNTERS)
def test_what_counts_is_left_out(name):
    assert act(COUNTERS[name]) == "leave"


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("first", [True, False])
def test_a_measurement_stays(name, first):
    assert act(MEASURES[name], first=first) is None


@pytest.mark.parametrize("law", ["integers", "rounded normal", "poisson", "geometric"])
def test_no_law_of_whole_numbers_is_taken_for_a_counter(law):
    """Whatever the law and the number of rows: in 400 tables none, where chance allows e^-10 each."""
    random = draws(5)
    for n in (20, 40, 100, 250):
        for _ in range(100):
            scale = n * n / 20  # where the rule just begins to apply
            x = {
                "integers": random.integers(0, int(scale) + 1, n),
                "rounded normal": np.round(random.normal(0, scale / 6, n)),
                "poisson": random.poisson(scale, n),
                "geometric": random.geometric(1 / scale, n),
            }[law]
            assert act(x) is None


TIMES = {
    "seconds": np.sort(draws().integers(START, START + 10**6, N)),
    "fractions of seconds": START + np.cumsum(draws().exponential(3, N)),
    "milliseconds": 1e3 * START + np.cumsum(draws().integers(1, 10**5, N)),
    "nanoseconds": 1e9 * START + 1e9 * np.cumsum(draws().integers(1, 10**5, N)),
    "downwards": START - np.cumsum(draws().exponential(3, N)),
    "days as numbers": CALENDAR,
    "days as numbers, shuffled": CALENDAR[SHUFFLED],
    "months as numbers": MONTHS,
    "minutes as numbers": 10_000 * CALENDAR + 1205,
    "even steps": 0.1 * np.arange(N),
    "nearly even steps": np.arange(N) + draws().uniform(-0.3, 0.3, N),
    "days of a spreadsheet": 45_292 + np.arange(N) / 24,
    "a number for each day": np.arange(N) // 24,
    "whole minutes, shuffled": START + 60 * draws().integers(0, 10**6, N),
}


@pytest.mark.parametrize("name", TIMES)
def test_what_tells_the_time_is_refused(name):
    assert act(TIMES[name]) == "refuse"


def test_a_name_tells_where_numbers_do_not():
    times = draws().integers(START, START + 10**7, N)
    assert act(times, "v") == "warn"
    assert all(act(times, name) == "refuse" for name in ("timestamp", "created_at_ts", "EventTime", "unix time"))
    ids = draws().permutation(np.unique(draws().integers(0, 10**7, N)))
    assert act(ids, "v") is None
    assert all(act(ids, name) == "leave" for name in ("id", "ID", "order_id", "customerId", "row"))
    assert all(act(ids, name) is None for name in ("fluid", "width", "humidity"))
    assert act(np.r_[ids, ids[:1]], "id") is None  # one comes twice
    assert act(ids + 0.5, "id") is None


def test_sorted_measurements_are_told_and_kept():
    """Steps between the sorted values of a sample are uneven, whatever its law; those of a clock are not."""
    laws = {
        "normal": lambda r, n: r.normal(50, 5, n),
        "uniform": lambda r, n: r.uniform(0, 1, n),
        "lognormal": lambda r, n: r.lognormal(0, 1, n),
        "two peaks": lambda r, n: r.normal(0, 1, n) + 9 * r.integers(0, 2, n),
        "rounded": lambda r, n: np.round(r.normal(50, 5, n), 1),
        "whole": lambda r, n: np.round(r.normal(0, 1e6, n)),
        "ages": lambda r, n: r.integers(18, 80, n),
    }
    random = draws(3)
    for name, law in laws.items():
        for n in (30, 100, 400):
            for _ in range(25):
                assert act(np.sort(law(random, n))) == "warn", (name, n)
                assert act(np.sort(law(random, n))[::-1]) == "warn", (name, n)


@pytest.mark.parametrize("name", ["", "Unnamed: 0", "Unnamed: 0.1", "__index_level_0__"])
def test_an_index_without_a_name(name):
    """As pandas writes it: of a filtered, a shuffled or a joined table too, and of few rows."""
    sparse = np.unique(draws().integers(0, 10**6, N))
    for values in (np.arange(N), SHUFFLED, sparse, sparse[:3], np.tile(np.arange(N // 3), 3)):
        assert act(values, name, first=True) == "leave"
        assert act(values[:1], name, first=True) == "leave"
    assert act(sparse, name, first=False) == ("leave" if name.startswith("__") else "warn")
    assert act(sparse, "value", first=True) == "warn"
    for values in (draws().normal(size=N), draws().integers(0, 5, N)):
        assert act(values, name, first=True) is None


def test_steps_are_those_of_the_rows_numbers():
    """Of rows that were drawn from a table, or chosen by a label, a counter is still one."""
    rows = np.sort(draws().permutation(100 * N)[:40])
    assert act(3 * rows - 7, rows=rows) == "leave"
    assert act(0.1 * rows, rows=rows) == "refuse"
    assert act(3 * draws().permutation(rows), rows=rows) is None
