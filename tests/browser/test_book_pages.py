"""The book in a browser: no warning, broken link or missing picture; readable on a phone and in the dark."""

import importlib.util
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from fedlab_core import cli, plots
from fedlab_core.workbench import scene
from fedlab_core.workbench.replay import page_part
from tools import book
from tools.jupyterlab import screenshot

PHONE = {"width": 390, "height": 844}
LOOK = """() => ({
    ids: [...document.querySelectorAll('[id]')].map(e => e.id),
    links: [...document.querySelectorAll('a[href]')].map(a => a.getAttribute('href')),
    missing: [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src),
    beyond: document.documentElement.scrollWidth - document.documentElement.clientWidth,
})"""
PALE = """() => {
    const light = c => {
        const [r, g, b] = c.map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const numbers = text => text.match(/[\\d.]+/g).map(Number);
    const behind = e => {
        for (; e; e = e.parentElement) {
            const c = numbers(getComputedStyle(e).backgroundColor);
            if (c.length < 4 || c[3] > 0.5) return c;
        }
        return [255, 255, 255];
    };
    const found = [];
    for (const e of document.querySelectorAll('article *')) {
        if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) || !e.getClientRects().length) continue;
        const [a, b] = [numbers(getComputedStyle(e).color), behind(e)].map(c => light(c.slice(0, 3)) + 0.05);
        if (Math.max(a / b, b / a) < 4) found.push(e.tagName + ': ' + e.textContent.slice(0, 40));
    }
    return found;
}"""
"""Texts whose contrast is below 4."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The book, built with warnings as errors."""
    missing = [name for name in ("sphinx", "myst_nb", "furo") if importlib.util.find_spec(name) is None]
    if missing and not os.environ.get("CI"):
        pytest.skip(f"{missing[0]} is not installed: pip install -e '.[book]'")
    folder = tmp_path_factory.mktemp("book")
    words = [sys.executable, str(book.ROOT / "tools" / "book.py"), "--folder", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "html"


@pytest.fixture
def phone(browser: Browser) -> Iterator[Page]:
    """A phone with a dark screen."""
    context = browser.new_context(viewport=PHONE, color_scheme="dark")  # type: ignore[arg-type]
    yield context.new_page()
    context.close()


def test_every_page_is_whole_and_fits_a_phone(site: Path, phone: Page) -> None:
    complaints: list[str] = []
    phone.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    phone.on("requestfailed", lambda request: complaints.append(request.url))
    seen: dict[str, dict[str, Any]] = {}
    for file in sorted(site.rglob("*.html")):
        if file.name != "search.html":
            phone.goto(file.as_uri(), wait_until="load")
            seen[file.relative_to(site).as_posix()] = phone.evaluate(LOOK)
            assert "_modules" in file.parts or phone.evaluate(PALE) == [], file.name
    assert len(seen) > 60 and complaints == []
    assert {name: page["missing"] for name, page in seen.items() if page["missing"]} == {}
    assert {name: page["beyond"] for name, page in seen.items() if page["beyond"] > 0} == {}
    broken = [
        (name, link) for name, page in seen.items() for link in page["links"] if not leads(site, seen, name, link)
    ]
    assert broken == []


def leads(site: Path, seen: dict[str, dict[str, Any]], page: str, link: str) -> bool:
    """Whether a link leads to a file, and to a place that is in it."""
    if urlsplit(link).scheme:
        return True  # elsewhere: nothing is fetched
    target = urlsplit(urljoin((site / page).as_uri(), link))
    file, place = Path(unquote(target.path)), unquote(target.fragment)
    there = seen.get(file.relative_to(site).as_posix()) if file.is_relative_to(site) else None
    return file.is_file() and (there is None or not place or place in there["ids"])


def test_the_search_finds_a_method(site: Path, page: Page) -> None:
    page.goto(f"{(site / 'search.html').as_uri()}?q=SCAFFOLD")
    expect(page.locator("#search-results")).to_contain_text("fedlab_core.methods.client.Scaffold")
    page.locator("#search-results a", has_text="methods.client.Scaffold").first.click()
    expect(page.locator("h1")).to_contain_text("methods")


def test_every_replay_is_played_with_keys_fingers_and_by_itself(site: Path, browser: Browser) -> None:
    context = browser.new_context(viewport=PHONE, has_touch=True)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto((site / "docs" / "replays.html").as_uri())
    players = page.locator(".fedlab-player")
    expect(players.locator(".said")).to_have_count(players.count())
    for player in players.all():
        slider, said, pictures = player.get_by_role("slider"), player.locator(".said"), player.locator("svg")
        last = said.inner_text()
        assert last and pictures.count() > 0
        assert all(svg.locator("polyline, path, circle").count() > 0 for svg in pictures.all())
        if slider.get_attribute("max") == "0":
            continue  # a lab of one picture
        slider.press("Home")
        expect(player.locator(".at")).to_have_text(f"1 of {int(slider.get_attribute('max') or 0) + 1}")
        assert said.inner_text() != last
        slider.press("ArrowRight")
        expect(player.locator(".at")).to_contain_text("2 of ")
        box = slider.bounding_box()
        assert box is not None and box["height"] >= 30, "wide enough for a finger"
        slider.tap(position={"x": box["width"] - 2, "y": box["height"] / 2})
        expect(said).to_have_text(last)
    player = page.locator("[data-replay=tug_of_war]")
    player.get_by_role("slider").press("End")
    player.get_by_role("button", name="play").tap()
    expect(player.get_by_role("button", name="pause")).to_be_visible()
    expect(player.locator(".at")).to_have_text("12 of 12", timeout=30_000)
    expect(player.get_by_role("button", name="play")).to_be_visible()
    context.close()


def test_words_of_a_replay_neither_meet_nor_are_cut_off(site: Path, page: Page) -> None:
    page.goto((site / "docs" / "replays.html").as_uri())
    names = page.locator("[data-replay=why] svg").nth(1).locator("text[transform]")
    expect(names.filter(has_text="participation")).to_be_visible()
    turned = [
        (float(found[1]), float(found[2]))
        for text in names.all()
        if (found := re.match(r"rotate\((-?[\d.]+) ([\d.]+)", text.get_attribute("transform") or ""))
        and float(found[1]) != -90
    ]
    assert len(turned) == 4
    places = sorted(x for _, x in turned)
    apart = min(b - a for a, b in zip(places, places[1:], strict=False)) * abs(math.sin(math.radians(turned[0][0])))
    assert apart > 9.5, "the height of a letter"
    cut = """svgs => svgs.flatMap(svg => [...svg.querySelectorAll('text:not([transform])')]
        .filter(t => t.getBBox().x + t.getBBox().width > svg.viewBox.baseVal.width + 1).map(t => t.textContent))"""
    assert page.locator("[data-replay=tug_of_war] svg").evaluate_all(cut) == []


def test_the_book_is_pictured_on_a_desk_on_a_phone_and_in_the_dark(site: Path, browser: Browser) -> None:
    desk = {"width": 1400, "height": 900}
    for name, window, scheme in (("desk", desk, "light"), ("phone", PHONE, "light"), ("dark", desk, "dark")):
        context = browser.new_context(viewport=window, color_scheme=scheme)  # type: ignore[arg-type]
        page = context.new_page()
        page.goto((site / "notebooks" / "00_start_here.html").as_uri())
        player = page.locator("[data-replay=tug_of_war]")
        expect(player.locator("svg").first).to_be_visible()
        player.scroll_into_view_if_needed()
        file = screenshot(page, f"book-{name}")
        assert file.stat().st_size > 20_000
        context.close()


def test_a_chapter_plays_its_labs(site: Path, page: Page) -> None:
    page.goto((site / "notebooks" / "00_start_here.html").as_uri())
    expect(page.locator("[data-replay=tug_of_war] svg").first).to_be_visible()
    expect(page.locator("[data-replay=step_by_step] .said")).to_contain_text("their mean")


def test_the_report_of_a_run_plays_it_without_a_server(page: Page, phone: Page, tmp_path: Path) -> None:
    (tmp_path / "small.json").write_text('{"dataset_options": {"examples": 200}, "clients": 4}', encoding="utf-8")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    assert cli.main(["run", str(tmp_path / "small.json"), "--rounds", "3", "--out", str(tmp_path / "run")]) == 0
    assert cli.main(["report", str(tmp_path / "run")]) == 0
    page.goto((tmp_path / "run" / "report.html").as_uri())
    player = page.locator(".fedlab-player")
    expect(player.locator("svg")).to_have_count(5)
    player.get_by_role("slider").press("Home")
    expect(player.locator(".said")).to_contain_text("Round 1: ")
    assert len(asked) == 1
    phone.goto((tmp_path / "run" / "report.html").as_uri())
    expect(phone.locator(".fedlab-player.dark svg").first).to_be_visible()
    assert phone.evaluate(LOOK)["beyond"] == 0 and phone.evaluate(PALE.replace("article *", "body *")) == []


def test_a_replay_can_be_read_in_the_dark(phone: Page, tmp_path: Path) -> None:
    """Grey is as far from the page as on white, and slanting words have their room."""
    fig, axes = plots.figure()
    axes[0, 0].plot([0, 1], [0, 1], color="0.2")
    axes[0, 0].annotate("participation", (0.5, 1.0), rotation=45, va="bottom")
    data = {"title": "", "settings": "", "steps": ["1"], "said": [""], "panels": scene.replay([fig])}
    (tmp_path / "page.html").write_text(f"<!DOCTYPE html><body>{page_part([data])}", encoding="utf-8")
    phone.goto((tmp_path / "page.html").as_uri())
    line = phone.locator("polyline").evaluate("e => getComputedStyle(e).stroke")
    assert min(map(float, re.findall(r"[\d.]+", line.removeprefix("color(srgb ")))) > 0.6, line
    picture, words = phone.locator("svg").bounding_box(), phone.locator("text", has_text="participation").bounding_box()
    assert picture is not None and words is not None and words["y"] >= picture["y"] and words["height"] > 30
