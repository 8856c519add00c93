"""The turning page in a real browser: it turns by itself and by hand, its slider moves time, nothing is asked of a
network.
"""

import pytest
import torch

from thalweg.apps.landscape.basins import basins
from thalweg.apps.landscape.film import Film
from thalweg.apps.landscape.html_page import page
from thalweg.apps.landscape.paths import Path, Trace
from thalweg.apps.landscape.surface import window
from thalweg.apps.landscape.survey import Survey


def wells(x):
    return 4 * (x[:, 0] ** 2 - 1) ** 2 + 2 * x[:, 1] ** 2


@pytest.fixture
def address(tmp_path):
    """A page of two wells and one ball that moves from left to right."""
    surface = window(wells, torch.tensor([[-2.0, -2.0], [2.0, 2.0]]), size=30, margin=0.0)
    points = torch.stack([torch.linspace(-1.5, 1.5, 12), torch.zeros(12)], dim=1)[:, None]
    way = Path(torch.zeros(2), torch.zeros(2, 2), torch.zeros(2))
    trace = Trace(torch.arange(12.0), points, torch.zeros(12, 1), False)
    about = {"kind": "vector", "normalised": False, "sigmas": [None], "surfaces": [surface]}
    rest = {"straight": way, "detour": None, "trace": trace, "trace_data": None, "histograms": {}}
    found = Survey(**about, basins=basins(surface), examples=points[:3, 0], data=points[:, 0], **rest)
    file = tmp_path / "page.html"
    file.write_bytes(page(found, Film([surface], [(0.0, 8.0)], [None], [0] * 12, points, "a ball"), title="two wells"))
    return file.as_uri()


def test_it_turns(address, new_page):
    view = new_page(address)
    view.wait_for_function("document.body.dataset.yaw !== undefined")

    def told(name):
        return float(view.evaluate(f"document.body.dataset.{name}"))

    yaw = told("yaw")
    view.wait_for_function(f"document.body.dataset.yaw > {yaw + 0.05}")
    view.click("#turn")
    view.wait_for_timeout(500)
    yaw = told("yaw")
    box = view.locator("canvas").bounding_box()
    view.mouse.move(box["x"] + 200, box["y"] + 150)
    view.mouse.down()
    view.mouse.move(box["x"] + 300, box["y"] + 150, steps=4)
    view.mouse.up()
    view.wait_for_function(f"Math.abs(document.body.dataset.yaw - {yaw + 0.8}) < 0.02")
    view.fill("#time", "7")
    view.wait_for_function("document.body.dataset.time == 7")
