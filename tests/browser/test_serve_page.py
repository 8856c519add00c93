"""The page of `thalweg serve` in a real browser: images, tables, texts and candidates, and a server that goes away.

Rows R23 (nothing from outside is run as a script) and the page's part of L5.
"""

import csv
import io
import re
import time

import numpy as np
import pytest
from PIL import Image

from .models import ATTACK, SIDE, Images, Judge, Points, Table, Texts
from .waiting import until


@pytest.fixture
def image_page(serve, new_page):
    page = new_page(serve({"digits": Images()}).address)
    page.wait_for_selector(".pad")
    return page


@pytest.fixture
def table_page(serve, new_page):
    page = new_page(serve({"pumps": Table()}).address)
    page.wait_for_selector("text=Choose a CSV file")
    return page


def stroke(page, *points):
    """A stroke of the mouse on the pad between points in [0, 1]²."""
    box = page.locator(".pad").bounding_box()
    for i, (x, y) in enumerate(points):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=3)
        if i == 0:
            page.mouse.down()
    page.mouse.up()


def verdict(page):
    """The verdict once there is one."""
    page.wait_for_selector(".verdict:not(.empty)")
    return page.inner_text(".verdict")


def energy(page):
    """The energy on the page, nats."""
    text = page.inner_text(".facts div:first-child dd")
    return float(re.match(r"[\d.]+", text.replace(",", ""))[0])


def pixels(page):
    """(H, W) of the pad in [0, 1]."""
    js = """() => {
      const canvas = document.querySelector(".pad canvas");
      return [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];
    }"""
    return np.array(page.evaluate(js)).reshape(SIDE, SIDE, 4)[..., 0] / 255


def settled(page, expected):
    """Waits until the energy on the page is the expected one."""
    end = time.monotonic() + 60
    while abs(energy(page) - expected) > 0.006 * max(1, abs(expected)):
        assert time.monotonic() < end, f"{energy(page)} nats on the page, not {expected}"
        page.wait_for_timeout(50)


def energy_of(values):
    return float(Images()._energy(np.rint(values * 255)[None, None] / 255)[0])


def png(values):
    file = io.BytesIO()
    Image.fromarray((255 * values).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def given(name, content, kind="image/png"):
    return {"name": name, "mimeType": kind, "buffer": content}


def drop(page, selector, name, content, kind):
    """A file dropped on an element."""
    js = """([selector, name, bytes, type]) => {
      const data = new DataTransfer();
      data.items.add(new File([Uint8Array.from(bytes)], name, { type }));
      const how = { dataTransfer: data, bubbles: true, cancelable: true };
      for (const kind of ["dragenter", "dragover", "drop"])
        document.querySelector(selector).dispatchEvent(new DragEvent(kind, how));
    }"""
    page.evaluate(js, [selector, name, list(content), kind])


def test_a_drawing_is_scored_explained_and_completed(image_page):
    page = image_page
    assert page.locator(".verdict").inner_text().startswith("Draw something")
    stroke(page, (0.2, 0.2), (0.3, 0.8))
    assert verdict(page) == "Odder than all 400 normal images: flagged."
    assert pixels(page).max() > 0.9
    settled(page, energy_of(pixels(page)))
    page.wait_for_selector("text=Red raises the energy, by up to 0.500 nats a pixel.")
    assert page.locator(".pad .layer").first.is_visible()
    assert "this one lies at" in page.locator(".result svg").get_attribute("aria-label")
    best = page.locator(".bars .best")
    until(page, "document.querySelector('.bars .best')")
    assert best.inner_text().split("\n")[0] == "left"

    assert page.get_by_role("button", name="Complete").is_disabled()
    page.get_by_text("Erase", exact=True).click()
    stroke(page, (0.25, 0.4), (0.28, 0.6))
    page.get_by_role("button", name="Complete").click()
    page.wait_for_selector("text=4 completions; the likeliest has")
    tiles = page.locator("button[aria-label^='Completion']")
    energies = [float(text) for text in tiles.all_inner_texts()]
    assert len(energies) == 4
    assert page.locator("button.best").inner_text() == f"{min(energies):.3f}"
    tiles.nth(1).click()
    page.wait_for_selector("text=Completion 2, of")
    settled(page, energies[1])

    before = pixels(page)
    page.get_by_role("button", name="Clear").click()
    page.wait_for_selector(".verdict.empty")
    assert pixels(page).max() == 0
    page.get_by_role("button", name="Undo").click()
    assert np.array_equal(pixels(page), before)
    verdict(page)


def test_the_last_drawing_wins(image_page):
    """The answer about an older drawing comes late; what stands at the end is that of the last one."""
    page, held = image_page, []

    def late(route):
        if not held:
            held.append(route)  # the first waits until the drawing is another
        else:
            route.continue_()

    page.route("**/v1/score*", late)
    stroke(page, (0.2, 0.2), (0.2, 0.4))
    page.wait_for_timeout(200)
    stroke(page, (0.7, 0.2), (0.7, 0.9))
    held[0].continue_()
    verdict(page)
    settled(page, energy_of(pixels(page)))


def test_samples_descend_and_go_onto_the_pad(image_page):
    page = image_page
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_role("button", name="Draw samples").click()
    page.wait_for_selector("text=Twelve draws of seed 0 at temperature 0.5.")
    assert "over 16 frames" in page.locator("svg:has(path.mean)").get_attribute("aria-label")
    tile = page.get_by_role("button", name=re.compile("^Sample 3,"))
    expected = float(tile.inner_text())
    tile.click()
    page.wait_for_selector("text=Sample 3 of seed 0.")
    settled(page, expected)
    page.get_by_role("button", name="Draw again").click()
    page.wait_for_selector("text=Twelve draws of seed 1 at temperature 0.5.")
    assert page.get_by_label("Seed").input_value() == "1"


def test_with_reduced_motion_samples_come_at_once(serve, new_page):
    page = new_page(serve({"digits": Images()}).address, reduced_motion="reduce")
    page.get_by_role("button", name="Draw samples").click()
    page.wait_for_selector("text=Twelve draws of seed 0")
    assert page.locator("svg:has(path.mean)").count() == 0
    assert page.get_by_role("button", name=re.compile("^Sample 12:|^Sample 12,")).is_enabled()


def test_files(image_page):
    """Chosen, dropped and pasted images are fitted; a wrong file gives one line and takes nothing away."""
    page, values = image_page, np.zeros((3 * SIDE, 2 * SIDE))
    values[:, :SIDE] = 0.8
    page.get_by_label("Choose an image").set_input_files(given("half.png", png(values)))
    page.wait_for_selector("text=half.png, 24 × 36 pixels, resized to 12 × 12.")
    assert np.allclose(pixels(page)[:, : SIDE // 2], 204 / 255)
    assert np.allclose(pixels(page)[:, SIDE // 2 :], 0)
    verdict(page)
    kept = pixels(page)

    wrong = {
        "empty.png is empty.": ("empty.png", b"", "image/png"),
        "notes.txt is not an image. PNG and JPEG are read.": ("notes.txt", b"a line", "text/plain"),
        "broken.png cannot be read as an image. PNG and JPEG are read.": ("broken.png", png(values)[:60], "image/png"),
        "wide.png has 5,000 × 4,000 pixels; at most 16 million are read.": (
            "wide.png",
            png(np.zeros((4000, 5000))),
            "image/png",
        ),
    }
    for line, file in wrong.items():
        page.get_by_label("Choose an image").set_input_files(given(file[0], file[1], file[2]))
        until(page, "line => document.querySelector('.drawing .trouble').textContent === line", line)
        assert np.array_equal(pixels(page), kept)
        assert page.locator(".verdict.empty").count() == 0

    drop(page, "section", "same.png", png(np.full((SIDE, SIDE), 0.2)), "image/png")
    page.wait_for_selector("text=same.png, as it is.")
    assert page.inner_text(".drawing .trouble") == ""
    assert np.allclose(pixels(page), 51 / 255)
    js = """bytes => {
      const data = new DataTransfer();
      data.items.add(new File([Uint8Array.from(bytes)], "p.png", { type: "image/png" }));
      document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true }));
    }"""
    page.evaluate(js, list(png(np.full((SIDE, SIDE), 0.4))))
    page.wait_for_selector("text=p.png, as it is.")
    page.get_by_role("button", name="Invert").click()
    assert np.allclose(pixels(page), 153 / 255)


def test_the_server_goes_away_and_comes_back(serve, new_page):
    service = serve({"digits": Images()})
    page = new_page(service.address, failures=True)
    page.wait_for_selector(".pad")
    service.stop()
    stroke(page, (0.2, 0.2), (0.3, 0.8))
    page.wait_for_selector("text=The server does not answer. Your work is kept.")
    assert page.locator(".banner[role=status]").is_visible()
    assert page.locator(".verdict.empty").count() == 1
    kept = pixels(page)
    service.start()
    page.get_by_role("button", name="Try now").click()
    assert verdict(page) == "Odder than all 400 normal images: flagged."
    assert np.array_equal(pixels(page), kept)
    page.wait_for_selector(".banner", state="hidden")


def test_it_waits_as_long_as_the_server_asks(serve, new_page):
    """429 and 503: sent again after Retry-After, and not before."""
    page, times = new_page(serve({"digits": Images()}).address, failures=True), []

    def busy(route):
        times.append(time.monotonic())
        status = {1: 429, 2: 503}.get(len(times))
        if status:
            route.fulfill(status=status, headers={"Retry-After": "1"}, json={"code": "full", "message": "full"})
        else:
            route.continue_()

    page.route("**/v1/score*", busy)
    page.get_by_label("Choose an image").set_input_files(given("a.png", png(np.full((SIDE, SIDE), 0.5))))
    page.wait_for_selector("text=The server has much to do.")
    verdict(page)
    assert len(times) == 3
    assert min(np.diff(times)) > 0.99
    assert page.locator(".banner").is_hidden()


def table_text(rows, separator=","):
    file = io.StringIO()
    csv.writer(file, delimiter=separator).writerows([Table.columns, *rows])
    return file.getvalue().encode()


NOT_UTF8 = "l.csv is not UTF-8 text. Save it as UTF-8 (“CSV UTF-8” in a spreadsheet) and choose it again."
ROWS = [(20, 1000, "on"), (20.5, 1003, "off"), (31, 1000, "on"), (20, 990, "burnt"), ("", 1001, "on")]


def test_a_table(table_page):
    page = table_page
    page.get_by_label("Choose a CSV file").set_input_files(given("week.csv", table_text(ROWS), "text/csv"))
    page.wait_for_selector("text=2 of 5 rows flagged, 40 %. Of normal rows 5 % would be.")
    assert page.locator("text=week.csv: 5 rows, 3 columns.").is_visible()
    lines = page.locator(".odd tbody tr")
    assert lines.locator("th").all_inner_texts() == ["3", "4", "2", "5", "1"]  # the oddest first
    until(page, "document.querySelector('.odd .why b')?.textContent === 'temperature'")
    assert lines.nth(0).locator(".why").inner_text() == "temperature 31, normal: 20 (100\xa0%)"
    assert ATTACK in lines.nth(1).inner_text()  # a column's name, as text
    assert page.locator("svg .stroke.flagged").count() == 2

    with page.expect_download() as saved:
        page.get_by_role("button", name="Download the result").click()
    with open(saved.value.path(), newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["flag"] for row in found] == ["false", "false", "true", "true", "false"]
    assert found[2]["reasons"].startswith("temperature (normal: 20)")
    u = Table().score({name: np.array([r[i] for r in ROWS[:4]], object) for i, name in enumerate(Table.columns)})
    assert np.allclose([float(row["energy"]) for row in found[:4]], u["energy"])

    with page.expect_download() as template:
        page.get_by_role("button", name="Download a template").click()
    with open(template.value.path(), newline="") as file:
        assert list(csv.reader(file)) == [list(Table.columns)]


def test_wrong_tables(serve, new_page):
    page = new_page(serve({"pumps": Table()}).address, failures=True)
    choose = page.get_by_label("Choose a CSV file")
    renamed = table_text(ROWS).replace(b"temperature", b"temprature")
    choose.set_input_files(given("a.csv", renamed, "text/csv"))
    until(page, "document.querySelector('.trouble').textContent.startsWith('temperature: ')")
    assert page.get_by_role("button", name="Leave out").count() == 0
    for name, content, line in (
        ("e.csv", b"", "e.csv is empty."),
        ("b.csv", b"\x00\x01", "b.csv is not a text of comma-separated values."),
        ("l.csv", table_text([(20, 1000, "Zürich")]).decode().encode("latin-1"), NOT_UTF8),
        ("h.csv", b"temperature,state\n", "h.csv has no row below its first line, which names the columns."),
        ("r.csv", b"a,b\n1,2\n1\n", "r.csv: row 2 has 1 cells; the first line has 2."),
    ):
        choose.set_input_files(given(name, content, "text/csv"))
        until(page, "line => document.querySelector('.trouble').textContent === line", line)

    more = [(*row, "x") for row in ROWS]
    content = table_text(more).replace(b"state\r\n", b"state,label\r\n", 1)
    choose.set_input_files(given("m.csv", content, "text/csv"))
    page.get_by_role("button", name="Leave out label").click()
    page.wait_for_selector("text=2 of 5 rows flagged")
    assert page.inner_text(".trouble") == ""


def test_a_large_table_goes_in_batches(table_page):
    page, sizes = table_page, []

    def counted(route):
        sizes.append(route.request.post_data.count("\n") - 1)
        route.continue_()

    page.route("**/v1/score*", counted)
    rows = [(20 + i % 3, 1000 + i % 5, "on") for i in range(2500)] + [(90, 1000, "on")]
    drop(page, "section", "large.csv", table_text(rows, ";"), "text/csv")
    page.wait_for_selector("text=large.csv: 2,501 rows, 3 columns, separated by semicolons.")
    page.wait_for_selector("text=of 2,501 rows flagged")
    assert sizes == [1024, 1024, 453]
    assert page.locator(".odd tbody th").first.inner_text() == "2,501"
    assert page.locator(".odd tbody tr").count() == 20
    page.get_by_role("button", name="Show 20 more of 2,481").click()
    assert page.locator(".odd tbody tr").count() == 40


class Drawn(Table):
    """A table that draws one row, with a true value and a category that is missing."""

    def sample(self, n, *, seed=0, temperature=1.0, label=None):
        return np.array([[20.25, True, None]], object)

    def sample_frames(self, n, *, seed=0, temperature=1.0, label=None, frames=12):
        yield self.sample(n), np.zeros(1)


def test_draws_of_a_table_and_what_the_server_warns_of(serve, new_page):
    page = new_page(serve({"pumps": Drawn()}).address)
    page.get_by_role("button", name="Draw samples").click()
    page.wait_for_selector("text=Draws of seed 0")
    assert page.locator("ol.texts li").all_inner_texts() == [f"temperature 20.25, {ATTACK} true, state missing"]

    def warned(route):
        answer = route.fetch()
        route.fulfill(response=answer, json={**answer.json(), "warnings": [f"state: {ATTACK} is unknown", "again"]})

    page.route("**/v1/score*", warned)
    page.get_by_label("Choose a CSV file").set_input_files(given("week.csv", table_text(ROWS), "text/csv"))
    page.wait_for_selector("text=is unknown")
    assert page.locator(".note p").all_inner_texts() == [f"state: {ATTACK} is unknown", "again"]


class Few(Table):
    """Rows of the table beside 10 normal ones, of which 5 % is less than one."""

    def __init__(self):
        self.calibration_energies = np.linspace(0, 3, 10)


def test_what_cannot_be_flagged_is_said(serve, new_page):
    page = new_page(serve({"few": Few()}).address)
    line = "Nothing is flagged at p = 0.05: beside 10 normal rows no p-value is below 0.091."
    page.wait_for_selector(f"text={line}")
    page.get_by_label("Choose a CSV file").set_input_files(given("week.csv", table_text(ROWS), "text/csv"))
    page.wait_for_selector(f"text=0 of 5 rows flagged, 0 %. {line}")
    assert page.locator("text=Of normal").count() == 0


def test_a_refused_row_of_a_later_batch_is_found(serve, new_page):
    """The server names a line of the batch; the page says which row of the table is its first."""
    page = new_page(serve({"pumps": Table()}).address, failures=True)
    rows = [(20, 1000, "on")] * 1024 + [("warm", 1000, "on")]
    page.get_by_label("Choose a CSV file").set_input_files(given("w.csv", table_text(rows), "text/csv"))
    until(page, "document.querySelector('.trouble').textContent.includes('in line 2')")
    assert page.inner_text(".trouble").endswith("(line 2 is row 1,025)")


def test_rows_without_names(serve, new_page):
    """Lists of numbers need no first line; what is no number is refused by the server, and an empty cell is missing."""
    page = new_page(serve({"moons": Points()}).address, failures=True)
    page.get_by_text("Paste or type lines").click()
    page.get_by_label("Lines of numbers").fill("0.5,1\n3,4\n")
    page.get_by_role("button", name="Score these lines").click()
    page.wait_for_selector("text=2 rows, lowest energy first.")
    assert page.locator(".odd tbody tr").all_inner_texts() == ["1\t0.625\t0.5, 1", "2\t12.50\t3, 4"]
    page.get_by_label("Lines of numbers").fill("0.5,one\n3,4\n")
    page.get_by_role("button", name="Score these lines").click()
    until(page, "document.querySelector('.trouble').textContent.startsWith('instances: ')")
    page.get_by_role("button", name="Draw samples").click()
    page.wait_for_selector("text=Draws of seed 0")
    assert page.locator(".texts li").count() == 10


def test_texts_and_candidates(serve, new_page):
    page = new_page(serve({"words": Texts(), "judge": Judge()}).address)
    page.get_by_role("textbox", name="Text").fill("aaxa")
    page.wait_for_selector(".letter.worst")
    assert page.locator(".letter .sign").all_inner_texts() == list("aaxa")
    assert page.locator(".letter.worst .below").inner_text() == "a"
    page.wait_for_selector("text=The most surprising letter is number 3, “x”, with 5.00 nats; “a” was expected there.")
    page.get_by_role("button", name="Use the repair aaaa").click()
    until(page, "document.querySelector('input.large').value === 'aaaa'")
    settled(page, 0)

    page.get_by_label("Model").select_option("judge")
    shades = {"dark.png": 0.1, "light.png": 0.9, "grey.png": 0.5}
    files = [given(name, png(np.full((SIDE, SIDE), shade))) for name, shade in shades.items()]
    page.get_by_label("Choose candidates").set_input_files([*files, given("no.png", b"no")])
    page.wait_for_selector("text=3 ranked, best first; the best is light.png.")
    assert page.locator(".ranked .name").all_inner_texts() == ["light.png", "grey.png", "dark.png"]
    assert page.inner_text("section .trouble >> nth=0").startswith("no.png cannot be read")
    page.get_by_label("Model").select_option("words")
    assert page.get_by_role("textbox", name="Text").input_value() == "aaaa"  # a view keeps its work
