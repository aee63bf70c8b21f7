"""The page in a real browser: what it shows, how it looks on a desk and on a phone, and what it
never does."""

from __future__ import annotations

import statistics
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.page.browser import Browser
from tests.page.world import (
    EVIL,
    TARGETS,
    Served,
    activity,
    image,
    image_id,
    job,
    opened,
    text,
)
from worker.core.outcome import Done
from worker.core.state import State
from worker.observe.activity import Activity

# What is wider than its box
TOO_WIDE = """
[...document.querySelectorAll('section *')]
  .filter(e => e.clientWidth && e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX === 'visible')
  .map(e => e.id || e.className || e.tagName)
"""
# The worst contrast (WCAG 2) of text on what lies behind it
CONTRAST = """
(() => {
  const linear = (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const rgba = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const light = (text) => {
    const [r, g, b] = rgba(text).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const hasText = (node) => [...node.childNodes].some((c) => c.nodeType === 3 && c.textContent.trim());
  let worst = 99;
  for (const node of document.querySelectorAll('body *')) {
    if (!hasText(node) || !node.getClientRects().length) continue;
    if (["OPTION", "SCRIPT", "STYLE"].includes(node.tagName)) continue;
    let behind = node;
    while (behind && rgba(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
    const a = light(getComputedStyle(node).color), b = light(getComputedStyle(behind).backgroundColor);
    worst = Math.min(worst, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  }
  return worst;
})()
"""


def test_everything_is_shown(browser: Browser, served: Served) -> None:
    opened(browser, served)
    assert text(browser, "#health") == "ready"
    assert "1.2.3" in text(browser, "#about")
    targets = text(browser, "#targets")
    assert "40 warm, 1 full" in targets
    assert "33 warm, 1 making, 4 cold, 2 failed, 1 unwanted" in targets
    lanes = text(browser, "#lanes")
    assert "prewarm.fast" in lanes
    assert "17" in lanes
    now = text(browser, "#now")
    assert "Have Glance copy the image into stores, for" in now
    assert "by what others took" in now, "an estimate, and called one"
    failures = text(browser, "#failures")
    assert "no such volume type" in failures
    assert "given up, try 20" in failures
    assert browser.value("document.querySelectorAll('#plot-create rect').length") == 1
    assert browser.value("document.querySelectorAll('#plot-create path').length") == 1
    assert browser.value("document.querySelectorAll('#plot-create circle').length") == 12
    # What is not warm comes first
    assert text(browser, "#images tbody tr.image") != ""
    first = browser.value(
        "[...document.querySelectorAll('#images tbody tr.image')].slice(0, 8).map(r => r.innerText)"
    )
    assert all(any(letter in row for letter in ("M", "F", "C", "B", "–")) for row in first)
    assert browser.value("document.querySelectorAll('#images tbody tr.image').length") == 41
    assert browser.errors == []


def test_what_others_write_is_text_and_tenants_names_stay_theirs(
    browser: Browser, served: Served
) -> None:
    opened(browser, served)
    browser.until("document.querySelector('#failures').innerText.includes('<script>')")
    assert browser.value("document.title") == "image-volume-worker"
    assert browser.value("document.querySelectorAll('#failures b, #images b, #now b').length") == 0
    assert "a tenant's secret" not in browser.value("document.documentElement.innerText")
    assert image_id(40) in browser.value("document.documentElement.innerText")


def test_a_name_that_turns_the_text_around_is_shown_as_it_is(browser: Browser) -> None:
    shown = Activity()
    shown.look(
        image(1, name="a\N{RIGHT-TO-LEFT OVERRIDE}gpj\n\x1b"),
        dict.fromkeys(TARGETS, (State.WARM, "")),
    )
    shown.look(
        image(2, name="\N{HEBREW LETTER ALEF}\N{HEBREW LETTER BET}"),
        dict.fromkeys(TARGETS, (State.WARM, "")),
    )
    shown.began(job(1))
    shown.doing(job(1).key, "\N{RIGHT-TO-LEFT OVERRIDE}why")
    served = Served(shown)
    try:
        opened(browser, served)
        told = browser.value("document.body.innerText")
        assert "a\\u202egpj\\u000a\\u001b" in told
        assert "\\u202ewhy" in told
        assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in browser.value(
            "document.documentElement.outerHTML"
        )
        # The id stands to the right of a name that is read from right to left
        place = (
            "document.querySelectorAll('#images "
            "tr.image')[1].querySelector('{}').getBoundingClientRect().{}"
        )
        name, beside = place.format(".head", "right"), place.format(".mono", "left")
        assert browser.value(name) <= browser.value(beside)
        assert (
            browser.value("getComputedStyle(document.querySelector('#images .head')).unicodeBidi")
            == "isolate"
        )
    finally:
        served.stop()


def test_nothing_leaves_the_host(browser: Browser, served: Served) -> None:
    opened(browser, served)
    browser.until("performance.getEntriesByType('resource').length >= 3")
    hosts = {urlsplit(url).netloc for url in browser.requests if not url.startswith("data:")}
    assert hosts == {f"127.0.0.1:{served.port}"}
    blocked = "fetch('http://127.0.0.2:1/').then(() => 'sent', () => 'blocked')"
    assert browser.value(blocked) == "blocked"
    assert any("Content Security Policy" in error for error in browser.errors)
    injected = (
        "const s = document.createElement('script'); s.textContent = 'window.evil = 1'; "
        "document.body.append(s)"
    )
    browser.value(injected)
    assert browser.value("typeof window.evil") == "undefined"


def test_filters(browser: Browser, served: Served) -> None:
    opened(browser, served)
    rows = "document.querySelectorAll('#images tbody tr.image').length"
    browser.value("$('filter').value = 'IMAGE 12'; $('filter').dispatchEvent(new Event('input'))")
    browser.until(f"{rows} === 1 && $('images').tBodies[0].innerText.includes('{image_id(12)}')")
    assert text(browser, "#rest") == "1 of 41 images"
    browser.value(
        "$('filter').value = ''; $('state').value = 'failed'; $('state').dispatchEvent(new "
        "Event('input'))"
    )
    browser.until(f"{rows} === 2")
    browser.value("$('filter').value = 'none such'; $('filter').dispatchEvent(new Event('input'))")
    browser.until(f"{rows} === 0")
    browser.value(
        "$('filter').value = ''; $('state').value = ''; $('state').dispatchEvent(new "
        "Event('input'))"
    )
    browser.until(f"{rows} === 41")


@pytest.mark.parametrize(
    ("name", "width", "height", "dark"),
    [
        ("light", 1280, 800, False),
        ("dark", 1280, 800, True),
        ("phone", 375, 812, False),
        ("phone-dark", 375, 812, True),
        ("tablet", 820, 1180, False),
        ("wide", 2560, 1440, True),
    ],
)
def test_how_it_looks(
    browser: Browser, served: Served, tmp_path: Path, name: str, width: int, height: int, dark: bool
) -> None:
    opened(browser, served, width=width, height=height, dark=dark)
    assert browser.value("document.documentElement.scrollWidth") <= width, "it scrolls sideways"
    assert browser.value(TOO_WIDE) == []
    picture = browser.screenshot(tmp_path / f"{name}.png")
    assert len(picture) > 20_000, "it is not blank"
    red, green, blue = browser.value(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
    )
    assert (red + green + blue < 3 * 64) is dark
    worst = browser.value(CONTRAST)
    assert worst >= 4.5, f"a contrast of {worst:.1f} is hard to read"


def test_a_worker_that_goes_and_comes_back(browser: Browser, served: Served) -> None:
    opened(browser, served)
    served.stop()
    assert "No answer since" in browser.until(
        "document.body.classList.contains('stale') && $('away').innerText"
    )
    served.problems["cloud"] = "keystone: no answer"
    served.start()
    browser.until("!document.body.classList.contains('stale')")
    assert (
        browser.until("$('health').innerText === 'not ready' && $('problems').innerText")
        == "cloud: keystone: no answer"
    )


def test_what_happens_is_seen(browser: Browser, served: Served) -> None:
    opened(browser, served)
    served.activity.settled(job(1, "slow"), Done(image_id(99), state=State.WARM))
    browser.until("$('now').innerText.indexOf('Have Glance copy') === -1")
    row = (
        f"[...document.querySelectorAll('#images tbody tr.image')].find(r => "
        f"r.innerText.includes('{image_id(1)}'))"
    )
    browser.until(f"{row}.querySelectorAll('.warm').length === 2")


def test_a_cloud_without_images(browser: Browser) -> None:
    served = Served(Activity())
    try:
        browser.open(served.url, width=1280, height=800)
        browser.until(
            "typeof $ === 'function' && $('rest').innerText.includes('No images seen yet')"
        )
        assert "Nothing is being made" in text(browser, "#now")
    finally:
        served.stop()


def test_ten_thousand_images(browser: Browser) -> None:
    served = Served(activity(10_000))
    rows = "document.querySelectorAll('#images tbody tr.image')"
    try:
        opened(browser, served)
        assert "10001 of 10001 images" in text(browser, "#rest")
        assert browser.value(f"{rows}.length") < 200, "only those in sight are in the document"
        # Over all of it, fifty screens: something is there at each, and soon
        browser.value("""(async () => {
          const most = document.documentElement.scrollHeight, frame = () => new Promise(requestAnimationFrame);
          window.empty = 0; window.times = [];
          for (let part = 1; part <= 50; part++) {
            scrollTo(0, most * part / 50 - innerHeight);
            const began = performance.now();
            draw();
            window.times.push(performance.now() - began);
            await frame();
            while (lacking()) await frame();
            await frame();
            if (!document.elementFromPoint(300, innerHeight / 2).closest('tr.image, p, section')) window.empty++;
            const seen = [...document.querySelectorAll('tr.image')].filter(r => r.getBoundingClientRect().bottom > 0
              && r.getBoundingClientRect().top < innerHeight && r.querySelector('button'));
            if (part > 2 && seen.length < 15) window.empty++;
          }
        })()""")
        assert browser.value("window.empty") == 0
        assert statistics.median(browser.value("window.times")) < 50, "milliseconds"
        browser.until(f"[...{rows}].at(-1).innerText.includes('image 9999')")
        assert browser.value("rows.size") < 10_000, (
            "only those that were looked at are in the browser"
        )
        assert browser.value(f"[...{rows}].at(-1).getAttribute('aria-rowindex')") == "10002"
        browser.value(
            f"$('filter').value = '{image_id(9999)}'; $('filter').dispatchEvent(new Event('input'))"
        )
        browser.until(f"{rows}.length === 1")
    finally:
        served.stop()


def test_a_row_tells_all_of_its_image(browser: Browser, served: Served) -> None:
    opened(browser, served, width=375, height=812)
    browser.value("$('filter').value = 'image 6'; $('filter').dispatchEvent(new Event('input'))")
    browser.until("document.querySelectorAll('tr.image').length === 1")
    browser.value(
        "document.querySelector('tr.image button').focus(); document.activeElement.click()"
    )
    told = browser.until("!!document.querySelector('#d-body h3') && $('detail').innerText")
    assert image_id(6) in told
    assert "slow: failed" in told
    assert EVIL in told
    assert browser.value("document.documentElement.scrollWidth") <= 375
    browser.value("$('d-close').click()")
    assert browser.value("$('detail').open") is False
    served.activity.settled(job(16, "slow"), Done(image_id(99), state=State.WARM))
    browser.value(
        "window.before = document.querySelector('tr.image'); document.querySelector('tr.image "
        "button').focus()"
    )
    browser.until("!window.before.isConnected")
    assert browser.value("document.activeElement.dataset.id") == image_id(6), (
        "what is drawn anew keeps the focus"
    )


def test_a_worker_that_was_started_again_with_as_many_changes(browser: Browser) -> None:
    served = Served(Activity())
    try:
        for name in ("before", "after"):
            again = Activity()
            again.comparing()
            again.look(image(1, name=name), dict.fromkeys(TARGETS, (State.WARM, "")))
            again.compared()
            served.activity = again
            if name == "before":
                opened(browser, served)
            browser.until(
                f"document.querySelector('#images tbody tr.image').innerText.includes('{name}')"
            )
    finally:
        served.stop()


def test_light_is_not_dark(browser: Browser, served: Served, tmp_path: Path) -> None:
    pictures = set()
    for dark in (False, True):
        opened(browser, served, dark=dark)
        pictures.add(browser.screenshot(tmp_path / f"{dark}.png"))
    assert len(pictures) == 2
