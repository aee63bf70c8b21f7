"""An operator uses the page: sees reasons, copies commands, finds images, also by keyboard."""

from __future__ import annotations

import re
import time
import uuid

import pytest

from tests.page.browser import Browser
from tests.page.world import (
    Served,
    activity,
    image_id,
    opened,
    text,
)
from worker.core.job import Job, Key
from worker.observe.activity import Activity


def test_whose_view_it_is(browser: Browser, served: Served) -> None:
    opened(browser, served)
    told = browser.until("$('worker').innerText")
    assert "one worker, on host controller-1" in told
    assert "It serves the lanes upload, reclaim, prewarm.fast." in told
    assert "No job of prewarm.slow has come here yet" in told
    rows = browser.value("[...document.querySelectorAll('#lanes tbody tr')].map(r => r.innerText)")
    assert ["no job yet" in row for row in rows] == [False, False, False, True]


def test_several_replicas_are_one_view(browser: Browser, served: Served) -> None:
    other, silent = Activity(), Activity()
    other.began(Job(key=Key("prewarm", image_id(2), "slow"), cause="x", first_at=time.time()))
    served.others = [
        (served.document(other, "controller-2"), 2.0),
        (served.document(silent, "controller-3"), 45.0),
    ]
    opened(browser, served)
    told = browser.until("$('worker').innerText.includes('replicas') && $('worker').innerText")
    assert told.startswith("3 replicas: controller-1 (upload, reclaim, prewarm.fast), which shows")
    assert "controller-2 (prewarm.slow)" in told
    assert "silent for 45 s" in told
    rows = browser.value("[...document.querySelectorAll('#lanes tbody tr')].map(r => r.innerText)")
    assert ["controller-2" in row for row in rows] == [False, False, False, True]
    assert image_id(2) in text(browser, "#now")


def test_uploads_wait_are_refused_and_are_done(browser: Browser, served: Served) -> None:
    opened(browser, served)
    told = browser.until("$('uploads').innerText")
    assert text(browser, "#uploads-count").startswith("1 waiting, 1 refused, 1 done")
    for number, words in (
        (30, "refused"),
        (30, "no such volume"),
        (31, "done"),
        (32, "waiting"),
        (32, "over quota"),
    ):
        assert image_id(number) in told
        assert words in told


def test_a_dead_letter_has_the_command_that_replays_it(browser: Browser, served: Served) -> None:
    opened(browser, served)
    told = browser.until("$('dead').innerText")
    assert "3 dead letters on the broker" in text(browser, "#dead-count")
    assert "no such volume type" in told
    command = (
        "image-volume-worker dead-letters replay --handler prewarm --target slow --image-id "
        f"{image_id(11)}"
    )
    commands = browser.value(
        "[...document.querySelectorAll('#dead .command code')].map(c => c.textContent)"
    )
    assert commands == [command, "image-volume-worker dead-letters list"]
    # A key of a plug-in may have what a shell would take for something else
    assert browser.value('quoted("a b\'c")') == "'a b'\\''c'"
    served.depths["dead"] = 0
    browser.until("$('dead-count').innerText === 'None.' && !$('dead').innerText")


def test_a_command_is_copied_by_keyboard(browser: Browser, served: Served) -> None:
    opened(browser, served)
    browser.until("!!document.querySelector('#dead .copy')")
    browser.call(
        "Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"]
    )
    button = "document.querySelector('#dead .copy')"
    browser.value(f"window.old = {button}; {button}.focus()")
    browser.press("Enter")
    assert browser.until("$('told').innerText").startswith(
        "Copied: image-volume-worker dead-letters"
    )
    assert browser.value("navigator.clipboard.readText()").startswith("image-volume-worker dead-")
    browser.until("!window.old.isConnected")
    assert browser.value(f"document.activeElement === {button}"), "redrawn, and still in focus"


def test_where_there_is_no_clipboard_the_command_is_copied_or_selected(
    browser: Browser, served: Served
) -> None:
    opened(browser, served)
    browser.until("!!document.querySelector('#dead .copy')")
    browser.value("navigator.clipboard.writeText = () => Promise.reject(new Error('insecure'))")
    browser.value("document.execCommand = () => false")
    browser.value("copy(document.querySelector('#dead .copy'))")
    assert browser.value("getSelection().toString()").startswith("image-volume-worker dead-letters")
    assert "Ctrl+C" in text(browser, "#told")
    selected = browser.value("window.chosen = getSelection().anchorNode; 1")
    assert selected
    browser.value("tick()")
    assert browser.value("window.chosen.isConnected"), "what is selected is not drawn anew"


def test_an_image_in_detail(browser: Browser, served: Served) -> None:
    opened(browser, served)
    browser.value("$('filter').value = 'image 7'; $('filter').dispatchEvent(new Event('input'))")
    browser.until("document.querySelectorAll('tr.image').length === 1")
    browser.value("document.querySelector('tr.image button').click()")
    told = browser.until("!!document.querySelector('#d-body table') && $('detail').innerText")
    for words in (
        image_id(7),
        "project project-1",
        "fast: full",
        "target fast is full (20 of 20 GiB)",
        str(uuid.UUID(int=70)),
        "ctl@fast#pool",
        "Pools of the target: ctl@fast#other, ctl@fast#pool",
        "3 d",
        "2 h ago",
        f"image-volume-worker explain {image_id(7)} --target fast",
        f"image-volume-worker status {image_id(7)}",
    ):
        assert words in told
    browser.value(
        "[...document.querySelectorAll('#d-body button')].find(b => b.dataset.project).click()"
    )
    browser.until("$('rest').innerText === '14 of 41 images'")
    assert browser.value("$('detail').open") is False
    assert browser.value("$('project').value") == "project-1"
    assert browser.errors == []


def test_an_image_that_this_worker_does_not_know(browser: Browser, served: Served) -> None:
    opened(browser, served)
    browser.value("showDetail('99999999-0000-4000-8000-000000000000')")
    assert "does not know the image" in browser.until(
        "$('d-body').innerText.includes('explain') && $('d-body').innerText"
    )


def test_a_private_name_is_in_no_detail(browser: Browser, served: Served) -> None:
    opened(browser, served)
    browser.value(f"showDetail('{image_id(40)}')")
    browser.until("!!document.querySelector('#d-body h3')")
    assert text(browser, "#d-name") == "Image"
    assert "a tenant's secret" not in browser.value("document.documentElement.innerText")


def test_how_volumes_were_made(browser: Browser, served: Served) -> None:
    opened(browser, served)
    told = browser.until("$('made').innerText")
    assert re.search(r"cache clone\s+12", told)
    assert re.search(r"download\s+no_location\s+a sentence: an advice\s+1", told)
    assert re.search(r"unknown\s+1", told)
    assert browser.value("document.querySelectorAll('#plot-made rect').length") == 3
    assert image_id(3) in text(browser, "#downloads")
    assert "◆ unknown" in text(browser, "#plot-create")


def test_budgets(browser: Browser, served: Served) -> None:
    opened(browser, served)
    told = browser.until("$('targets').innerText")
    assert "Budget: 120.0 GiB of 200 GiB, 40 of 50 Image-Volumes (80 %)" in told
    assert "90.0 GiB in 40 Image-Volumes, no budget" in told
    meter = "document.querySelector('#targets [role=meter]').getAttribute('aria-valuenow')"
    assert browser.value(meter) == "80"


def test_images_are_sorted_and_chosen_by_target_project_and_reason(
    browser: Browser, served: Served
) -> None:
    opened(browser, served)
    rows = "document.querySelectorAll('#images tbody tr.image').length"

    def choose(name: str, value: str) -> None:
        browser.value(
            f"$('{name}').value = '{value}'; $('{name}').dispatchEvent(new Event('input'))"
        )

    browser.until("$('target').options.length === 3")
    choose("target", "fast")
    browser.until(
        "[...document.querySelectorAll('#images thead th')].map(t => t.innerText).join() === 'Image,Size,fast,Why not'"
    )
    choose("reason", "IS FULL")
    browser.until(f"{rows} === 1")
    choose("target", "slow")
    browser.until(f"{rows} === 0")
    browser.value("$('clear').click()")
    browser.until(f"{rows} === 41")
    choose("project", "project-2")
    browser.until("$('rest').innerText === '13 of 41 images'")
    choose("project", "")
    choose("sort", "size")
    first = "document.querySelector('#images tbody tr.image').innerText"
    browser.until(f"{first}.includes('7.0 GiB')")
    assert browser.errors == []


@pytest.mark.parametrize("width", [390, 1440])
def test_the_table_of_images_takes_all_of_its_width(browser: Browser, width: int) -> None:
    # So many that some are not in the document, and a gap stands for them
    served = Served(activity(400))
    try:
        opened(browser, served, width=width, height=844)
        assert browser.value("document.querySelector('tr.gap:last-child').clientHeight") > 0
        cells = "[...document.querySelector('tr.image').children].filter(c => c.clientWidth)"
        section = "document.querySelector('section.wide').getBoundingClientRect().right"
        right = browser.value(f"{cells}.at(-1).getBoundingClientRect().right")
        assert 0 <= browser.value(section) - right < 30
    finally:
        served.stop()


def test_everything_is_reached_by_keyboard(browser: Browser, served: Served) -> None:
    opened(browser, served)
    browser.until("!!document.querySelector('#dead .copy')")
    browser.press("Tab")
    assert browser.value("document.activeElement.innerText") == "Skip to the images"
    browser.press("Enter")
    browser.until("document.activeElement.id === 'h-images'")
    for name in ("filter", "state", "target", "project", "reason", "sort"):
        browser.press("Tab")
        browser.until(f"document.activeElement.id === '{name}'")
    browser.press("Tab")
    browser.until("document.activeElement.closest('tr.image') !== null")
    opener = browser.value("document.activeElement.dataset.id")
    browser.press("Enter")
    browser.until("$('detail').open && !!document.querySelector('#d-body h3')")
    assert browser.value("$('detail').contains(document.activeElement)")
    browser.press("Escape")
    browser.until(f"!$('detail').open && document.activeElement.dataset.id === '{opener}'")
    # A link in a list opens the detail too, and gets the focus back though it was drawn anew
    browser.value("window.link = document.querySelector('#failures .link'); window.link.focus()")
    browser.press("Enter")
    browser.until("$('detail').open && !window.link.isConnected")
    browser.press("Escape")
    browser.until("!$('detail').open && document.activeElement.closest('#failures') !== null")
