"""The page of `thalweg serve` for everyone: by keys alone, with names for all controls, in both colour schemes, on a
phone; and nothing from outside runs as a script (R23).
"""

import csv
import hashlib
import io
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from thalweg.serve.page.routes import POLICY, page_router

from .models import ATTACK, Images, Judge, Table, Texts
from .waiting import until

PAGE = Path(sys.modules[page_router.__module__].__file__).parent
MARKUP = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|localStorage"
ALL = {"digits": Images, "pumps": Table, "words": Texts, "judge": Judge}


@pytest.fixture
def address(serve):
    return serve({name: kind() for name, kind in ALL.items()}).address


def lines_of(*rows):
    file = io.StringIO()
    csv.writer(file).writerows(rows)
    return file.getvalue()


def filled(page, name):
    """The view of a model with results in it."""
    page.get_by_label("Model").select_option(name)
    if name == "digits":
        page.get_by_role("button", name="Draw samples").click()
        page.wait_for_selector("text=Twelve draws")
        page.get_by_role("button", name=re.compile("^Sample 1,")).click()
        page.wait_for_selector("text=Red raises the energy")
    elif name == "pumps":
        page.get_by_text("Paste or type lines").click()
        page.get_by_label("Lines of CSV").fill(lines_of(Table.columns, (20, 1000, "on"), (40, 1000, "on")))
        page.get_by_role("button", name="Score these lines").click()
        page.wait_for_selector(".odd .why b")
    elif name == "words":
        page.get_by_role("textbox", name="Text").fill("axa a")
        page.wait_for_selector(".letter.worst")


CONTRAST = r"""() => {
  const parse = (colour) => {
    const [r, g, b, a = 1] = colour.match(/[\d.]+/g).map(Number);
    return colour.startsWith("color(") ? [255 * r, 255 * g, 255 * b, a] : [r, g, b, a];
  };
  const over = (top, under) => [0, 1, 2].map((i) => top[3] * top[i] + (1 - top[3]) * under[i]).concat(1);
  const linear = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const own = (e) => parse(getComputedStyle(e).backgroundColor);
  const ground = (e) => e === document.body ? own(e) : over(own(e), ground(e.parentElement));
  const speaks = (e) => [...e.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  const found = [];
  for (const e of document.body.querySelectorAll("*")) {
    if (e.closest("noscript, .pad, :disabled, option, .unseen, .skip") || !e.checkVisibility() || !speaks(e)) continue;
    const style = getComputedStyle(e), under = ground(e);
    const ink = over(parse(e instanceof SVGElement ? style.fill : style.color), under);
    const [a, b] = [light(ink), light(under)].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), e.textContent.slice(0, 40)]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(address, new_page, scheme):
    """WCAG 2.2, 1.4.3: at least 4.5 to 1; a phone's width without a horizontal scroll."""
    page = new_page(address, color_scheme=scheme, viewport={"width": 390, "height": 844})
    grounds = set()
    for name in ALL:
        filled(page, name)
        found = page.evaluate(CONTRAST)
        assert len(found) > 10
        assert [entry for entry in found if entry[0] < 4.5] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    (ground,) = grounds
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) > 380) == (scheme == "light")


def test_the_tools_wrap_evenly_on_a_small_phone(address, new_page):
    """No button of the pad stands alone in a line."""
    page = new_page(address, viewport={"width": 360, "height": 740})
    filled(page, "digits")
    tops = [page.get_by_role("button", name=name).bounding_box()["y"] for name in ("Undo", "Invert", "Clear")]
    assert len({*tops}) == 1


def true_of(node):
    """Properties of a node of the accessibility tree that are true."""
    return {p["name"] for p in node.get("properties", []) if p["value"].get("value") is True}


def test_every_control_has_a_name(address, new_page):
    """WCAG 2.2, 4.1.2: what can be focused has a name for a screen reader, and results are announced."""
    page = new_page(address)
    session = page.context.new_cdp_session(page)
    for name in ALL:
        filled(page, name)
        nodes = session.send("Accessibility.getFullAXTree")["nodes"]
        focusable = [node for node in nodes if not node.get("ignored") and "focusable" in true_of(node)]
        assert len(focusable) > 5
        roles = [node["role"]["value"] for node in focusable if not node.get("name", {}).get("value")]
        assert [role for role in roles if role not in ("RootWebArea", "main")] == []
        assert page.locator("[role=status]:visible").count() >= 1
        pictures = page.locator("img:not([alt]), canvas:not([role]):not([aria-hidden])")
        assert pictures.evaluate_all("found => found.filter((e) => !e.closest('[aria-label]')).length") == 0
    assert page.locator("html").get_attribute("lang") == "en"


def test_keys_alone(address, new_page):
    """From the top of the page to a verdict, a tool, a sample and another model without a mouse."""
    page = new_page(address)
    page.wait_for_selector(".pad")

    def tab_to(selector, key="Tab"):
        for _ in range(60):
            page.keyboard.press(key)
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"no {selector} within 60 presses of {key}")

    tab_to(".pad")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    for key in ("Space", "Shift+ArrowDown", "Shift+ArrowDown", "Shift+ArrowRight", "ArrowUp"):
        page.keyboard.press(key)
    page.wait_for_selector(".verdict:not(.empty)")
    page.keyboard.press("Control+z")
    tab_to("input[type=radio]")
    page.keyboard.press("ArrowRight")
    assert page.locator("input[value=erase]").is_checked()
    tab_to(".pad", "Shift+Tab")
    page.keyboard.press("Space")
    tab_to("button.primary:not(:disabled)")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=4 completions; the likeliest has")
    tab_to("input[type=range]")
    page.keyboard.press("ArrowLeft")
    tab_to("section:last-child button.primary")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=at temperature 0.95")
    tab_to("button[aria-label^='Sample 1,']")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Sample 1 of seed 0.")
    assert page.evaluate("document.activeElement.matches('.pad')")
    tab_to("#model", "Shift+Tab")
    page.keyboard.press("ArrowDown")
    page.wait_for_selector("text=Choose a CSV file")


def test_a_finger_draws_and_does_not_scroll(serve, new_page):
    how = {"has_touch": True, "is_mobile": True, "viewport": {"width": 390, "height": 600}}
    page = new_page(serve({"digits": Images()}).address, **how)
    box = page.locator(".pad").bounding_box()
    session = page.context.new_cdp_session(page)
    for step in range(6):
        kind = "touchStart" if step == 0 else "touchMove"
        point = {"x": box["x"] + 100, "y": box["y"] + 60 + 30 * step}
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [point]})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait_for_selector(".verdict.flagged")
    column = "[...document.querySelector('.pad canvas').getContext('2d').getImageData(3, 0, 1, 12).data]"
    assert sum(value > 100 for value in page.evaluate(column)[::4]) >= 5
    assert page.evaluate("scrollY") == 0


def test_nothing_from_outside_runs(serve, new_page):
    """R23: markup in a model's name, a column, a category, a label and an error is shown as text."""
    page = new_page(serve({ATTACK: Table(), "digits": Images()}).address, failures=True)
    until(page, "document.title.includes('<img')")
    assert page.inner_text("h1") == ATTACK
    page.get_by_text("Paste or type lines").click()
    page.get_by_label("Lines of CSV").fill(lines_of(Table.columns, (40, 1000, ATTACK)))
    page.get_by_role("button", name="Score these lines").click()
    page.wait_for_selector("text=1 of 1 row flagged")
    page.wait_for_selector(".odd .why b")
    error = {"code": "x", "field": ATTACK, "message": ATTACK}
    page.route("**/v1/score*", lambda route: route.fulfill(status=422, json=error))
    page.get_by_role("button", name="Score these lines").click()
    until(page, "document.querySelector('.trouble').textContent.includes('<img')")
    page.get_by_label("Model").select_option("digits")
    assert ATTACK in page.locator("option").all_inner_texts()
    assert page.evaluate("document.body.dataset.attacked") is None
    assert page.locator("main img, main script").count() == 0


def test_the_policy_holds(serve, new_page):
    """R23, and its mutant: a script, a style or a picture that did get into the page is not run, used or fetched."""
    page = new_page(serve({"digits": Images()}).address, failures=True)
    page.wait_for_selector(".pad")
    blocked = page.evaluate(
        """async () => {
          const blocked = [];
          document.addEventListener("securitypolicyviolation", (event) => blocked.push(event.effectiveDirective));
          const add = (name, has) => document.body.append(Object.assign(document.createElement(name), has));
          add("script", { textContent: "document.body.dataset.attacked = 1" });
          add("style", { textContent: "body { color: red }" });
          add("img", { src: "http://127.0.0.1:9/x.png" });
          add("iframe", { src: "about:blank#x" });
          await fetch("http://127.0.0.1:9/").catch(() => {});
          await new Promise((resolve) => setTimeout(resolve, 300));
          return blocked;
        }"""
    )
    assert {"script-src-elem", "style-src-elem", "img-src", "connect-src"} <= set(blocked)
    assert page.evaluate("document.body.dataset.attacked") is None


def test_a_token_is_asked_for_once(serve, new_page):
    """R22: kept in this tab's session alone, never in an address."""
    secret = "a-token-of-the-tests-0123456789"
    service = serve({"digits": Images()}, tokens=(hashlib.sha256(secret.encode()).hexdigest(),))
    page, addresses = new_page(service.address, failures=True), []
    page.on("request", lambda request: addresses.append(request.url))
    page.get_by_role("textbox", name="Token").fill("another-one-0123456789")
    page.get_by_role("button", name="Continue").click()
    page.wait_for_selector("text=The server does not know this token.")
    page.get_by_role("textbox", name="Token").fill(secret)
    page.keyboard.press("Enter")
    page.wait_for_selector(".pad")
    page.reload()
    page.wait_for_selector(".pad")
    assert page.locator("dialog").count() == 0
    assert page.evaluate("Object.values(sessionStorage)") == [secret]
    assert page.evaluate("[localStorage.length, document.cookie, location.href]") == [0, "", service.address]
    assert not any(secret in url for url in addresses)


def test_routes():
    """Exactly the page's files, with their types, their policy and a hash that a browser may ask by."""
    app = FastAPI()
    app.include_router(page_router())
    client = TestClient(app)
    names = [path.name for path in PAGE.iterdir() if path.suffix in (".js", ".css", ".svg")]
    assert len(names) > 10
    kinds = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
    for path, kind in {"/": "text/html; charset=utf-8", **{f"/page/{n}": kinds[Path(n).suffix] for n in names}}.items():
        answer = client.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == kind
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        again = client.get(path, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert client.get(path, headers={"If-None-Match": '"another"'}).status_code == 200
        assert client.head(path).status_code == 200
    for path in ("/page/routes.py", "/page/index.html", "/page/", "/page/..%2froutes.py", "/page/../routes.py"):
        assert client.get(path).status_code == 404
    assert app.openapi()["paths"] == {}


def test_files_are_small_and_keep_to_the_policy():
    for path in PAGE.iterdir():
        if path.suffix in (".js", ".css", ".html"):
            text = path.read_text("utf-8")
            assert text.count("\n") < 400, path.name
            assert not re.search(MARKUP, text), path.name
            assert not re.search(r"https?://(?!www\.w3\.org/)", text)
    page = (PAGE / "index.html").read_text("utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*src=)", page)


def test_a_wheel_has_the_page(tmp_path):
    root = PAGE.parents[3]
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path]
    subprocess.run(build, cwd=root, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name.rsplit("/", 1)[1] for name in archive.namelist() if name.startswith("thalweg/serve/page/")}
    assert held >= {path.name for path in PAGE.iterdir() if path.is_file()}
