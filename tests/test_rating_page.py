"""The rating page in a real browser: a study rated to its end, blind in every frame, by keyboard alone, with opt-out, break, stop and resume."""

import http.client
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from types import SimpleNamespace

import pandas as pd
import pytest

from psychosafe_utils import ratings
from psychosafe_utils.helplines import registry
from psychosafe_utils.ratings import items_to_rate
from psychosafe_utils.tables import check_table

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="there is no system Chromium; install the package chromium")
HOSTILE = "First line\n  second line\n<script>document.title = 'run'</script><b>bold</b> **bold** &amp; $x$"
CLUSTERS = ["suicide_self_harm", "violence", "substance_use", "sexual_crimes", "benign", "weapons"]
RATERS = ["ann", "ben", "cem", "dora", "eve", "finn", "gil"]
# What must not reach a rater: conditions, generation ids, item ids, and which items are repeats or checks.
SECRETS = ("CONDITION", "GENERATION", "attention\"", "\"repeat", "key.csv")


def start_server(folder):
    """The page as a process of its own, and its address once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", f"from psychosafe_utils.rating_page import serve; serve({str(folder)!r}, {port})"])
    for _ in range(300):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}")
            return process, port
        except OSError:
            assert process.poll() is None, "the server ended"
            time.sleep(0.1)
    process.kill()
    raise TimeoutError("the server did not answer within 30 s")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A served study of 12 answers without repeats; its key is out of reach while the page runs."""
    folder = tmp_path_factory.mktemp("study")
    answers = pd.DataFrame([
        {
            "generation_id": f"GENERATION-{p}-{c}", "prompt_id": f"p{p}", "text": f"Message {p}\nin two lines", "response": HOSTILE,
            "cluster": cluster, "condition": f"CONDITION-{c}",
        }
        for p, cluster in enumerate(CLUSTERS) for c in ("ALPHA", "BETA")
    ])
    ratings.make_study(answers, folder, raters=RATERS, repeats=0, attention=0)
    settings = json.loads((folder / "study.json").read_text()) | {"break_items": 8}
    (folder / "study.json").write_text(json.dumps(settings))
    (folder / "key.csv").rename(folder.parent / "key.csv")
    process, port = start_server(folder)
    yield SimpleNamespace(folder=folder, port=port, url=f"http://127.0.0.1:{port}", key=folder.parent / "key.csv")
    process.terminate()
    process.wait(10)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, study):
    """A tab whose frames, requests and script errors are kept."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(10_000)
    page.frames_seen, page.requests, page.errors = [], [], []
    page.on("websocket", lambda ws: [ws.on(event, lambda data: page.frames_seen.append(str(data))) for event in ("framereceived", "framesent")])
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("pageerror", lambda error: page.errors.append(error))
    page.on("dialog", lambda dialog: page.errors.append(dialog.message))
    page.goto(study.url)
    yield page
    assert page.errors == []
    page.close()


def button(page, name):
    return page.get_by_role("button", name=name, exact=True)


def sign_in(page, name, skip=()):
    page.get_by_label("Your name in this study").fill(name)
    button(page, "Sign in").click()
    for label in skip:
        page.get_by_label(label).check()
    button(page, "Begin").click()


def answer_all(page):
    """Choose the highest score of each item."""
    page.locator("fieldset").first.evaluate("set => set.form.querySelectorAll('label:last-of-type input[type=radio]').forEach(input => input.click())")


def rate(page, n):
    """Rate what is shown as answer `n`, and wait until it has gone."""
    page.get_by_role("heading", name=f"{n} of").wait_for()
    answer_all(page)
    button(page, "Next").click()
    page.get_by_role("heading", name=f"{n} of").wait_for(state="detached")


def heading(page):
    return page.locator("h1").inner_text()


def test_twelve_answers_with_a_reload_in_the_middle_and_nothing_told(page, study):
    sign_in(page, "ann")
    for n in range(1, 6):
        rate(page, n)
    assert "CONDITION" not in page.content() and "GENERATION" not in page.content()
    page.reload()
    sign_in(page, "ann")
    for n in range(6, 13):
        rate(page, n)
    page.get_by_role("heading", name="Done").wait_for()
    assert len(ratings.saved_rows(study.folder, "ann")) == 12
    told = "".join(page.frames_seen) + page.content()
    assert "Message 3" in told  # the frames were really seen
    assert not [secret for secret in (*SECRETS, *ratings.read_plan(study.folder).item) if secret in told]
    assert all(url.startswith((study.url, f"ws://127.0.0.1:{study.port}", "blob:", "data:")) for url in page.requests)
    shutil.copy(study.key, study.folder / "key.csv")
    rows = check_table(ratings.ratings_to_judgements(study.folder), "judgements", "here")
    (study.folder / "key.csv").unlink()
    rows, cluster_of = rows[rows.rater == "human:ann"], dict(zip((str(p) for p in range(6)), CLUSTERS))
    rows_of = {g: list(r.criterion) for g, r in rows.groupby("generation_id")}
    assert len(rows_of) == 12 and all(names == list(items_to_rate("extended.v1", cluster_of[g.split("-")[1]])) for g, names in rows_of.items())
    assert set(rows.status) == {"ok"} and set(rows.score) == {1.0, 5.0}
    assert ratings.read_ratings(study.folder).seconds.between(0, 60).all()


def test_a_response_is_shown_as_text_with_its_lines(page):
    sign_in(page, "ben")
    shown = page.get_by_role("region", name="Response to rate").get_by_role("blockquote")
    assert shown.inner_text() == HOSTILE and shown.evaluate("quote => quote.children.length") == 0 and page.title() != "run"
    assert page.get_by_role("region", name="Message").get_by_role("blockquote").inner_text().endswith("\nin two lines")


def test_next_wants_every_question_answered(page, study):
    sign_in(page, "ben")
    page.locator("fieldset").nth(1).get_by_role("radio").first.check()
    button(page, "Next").click()
    assert "Not answered yet: " in page.get_by_role("alert").inner_text() and heading(page) == "1 of 12"
    assert page.locator("fieldset.missing").count() == page.locator("fieldset").count() - 1
    assert ratings.saved_rows(study.folder, "ben") == {}


def test_a_second_click_rates_nothing(page, study):
    sign_in(page, "gil")
    page.get_by_role("heading", name="1 of 12").wait_for()
    answer_all(page)
    button(page, "Next").evaluate("button => { button.click(); button.click() }")
    page.get_by_role("heading", name="2 of 12").wait_for()
    page.wait_for_timeout(300)
    assert heading(page) == "2 of 12" and len(ratings.saved_rows(study.folder, "gil")) == 1


def test_an_unknown_name_is_told_each_time(page):
    for _ in range(2):
        page.get_by_label("Your name in this study").fill("nobody")
        button(page, "Sign in").click()
        page.get_by_text("rater 'nobody' is not in the plan of this study").wait_for()
        page.get_by_label("Your name in this study").fill("ben")
        button(page, "Sign in").click()
        button(page, "Stop").click()
        button(page, "Sign in again").click()


def test_opting_out_of_a_topic_skips_its_items(page, study):
    sign_in(page, "cem", skip=["suicide and self-harm", "sexual crimes"])
    page.get_by_role("heading", name="1 of 8").wait_for()
    rows = ratings.read_ratings(study.folder)
    rows = rows[rows.rater == "cem"].merge(ratings.read_plan(study.folder).drop_duplicates("item")[["item", "cluster"]], on="item")
    assert set(rows.cluster) == {"suicide_self_harm", "sexual_crimes"} and rows.item.nunique() == 4 and rows.skipped.all()
    for n in range(1, 9):
        assert page.get_by_role("region", name="Message").inner_text().split("\n")[-2].split()[1] not in ("0", "3")
        rate(page, n)
    page.get_by_role("heading", name="Done").wait_for()


def test_a_break_is_proposed_and_stop_shows_the_support_list(page, study):
    sign_in(page, "dora")
    for n in range(1, 9):
        rate(page, n)
    page.get_by_role("heading", name="Time for a break?").wait_for()
    button(page, "Go on").click()
    page.get_by_role("heading", name="9 of 12").wait_for()
    button(page, "Stop").click()
    page.get_by_text("Everything is saved").wait_for()
    assert page.get_by_role("link", name="https://findahelpline.com").is_visible()
    country = page.locator("details", has_text="United Kingdom")
    assert not country.get_by_text("Samaritans").is_visible()
    country.locator("summary").click()
    assert country.get_by_text("Samaritans (call 116 123, email").is_visible()
    shown = page.locator("main").text_content()
    known = registry()
    assert not any(name in shown for name in set(known.name[known.status == "superseded"]) - set(known.name[known.status == "verified"]))
    button(page, "Sign in again").click()
    sign_in(page, "dora")
    page.get_by_role("heading", name="9 of 12").wait_for()


def focused(page):
    """The focused element, within the shadow roots that Panel draws in."""
    return page.evaluate("""() => {
        let element = document.activeElement
        while (element.shadowRoot?.activeElement) element = element.shadowRoot.activeElement
        const outlines = [element, element.closest('label') ?? element].map(getComputedStyle).map(({outlineStyle, outlineWidth}) => outlineStyle + ' ' + outlineWidth)
        return {tag: element.tagName, type: element.type, text: element.innerText, name: element.name, value: element.value, outlines}
    }""")


def tab_to(page, wanted):
    for _ in range(40):
        page.keyboard.press("Tab")
        if wanted(focused(page)):
            assert "solid 3px" in focused(page)["outlines"]
            return
    raise AssertionError(f"Tab does not reach it; focus is on {focused(page)}")


def test_the_keyboard_alone_rates_an_item(page, study):
    page.get_by_label("Your name in this study").wait_for()
    tab_to(page, lambda at: at["name"] == "rater")
    page.keyboard.type("eve")
    page.keyboard.press("Enter")
    button(page, "Begin").wait_for()
    tab_to(page, lambda at: at["text"] == "Begin")
    page.keyboard.press("Space")
    page.get_by_role("heading", name="1 of 12").wait_for()
    names = page.locator("fieldset").evaluate_all("sets => sets.map(set => set.querySelector('input').name)")
    for name in names:
        tab_to(page, lambda at: at["type"] == "radio" and at["name"] == name)
        page.keyboard.press("Space")
        page.keyboard.press("ArrowDown")
    tab_to(page, lambda at: at["text"] == "Next")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="2 of 12").wait_for()
    (row,) = ratings.saved_rows(study.folder, "eve").values()
    assert list(row["scores"]) == names and set(row["scores"].values()) == {1, 2}
    assert focused(page)["tag"] == "H1"
    page.keyboard.press("Tab")
    assert focused(page)["text"] == "Stop"


def test_two_tabs_of_one_rater_neither_lose_nor_double(page, browser, study):
    second = browser.new_page()
    second.goto(study.url)
    for tab in (page, second):
        sign_in(tab, "finn")
        tab.get_by_role("heading", name="1 of 12").wait_for()
    rate(page, 1)
    rate(page, 2)
    rate(second, 1)  # the same answer again
    second.get_by_role("heading", name="3 of 12").wait_for()
    second.close()
    assert len(ratings.saved_rows(study.folder, "finn")) == 2


def test_a_phone_needs_no_sideways_scrolling_and_groups_have_names(browser, study):
    phone = browser.new_page(viewport={"width": 400, "height": 800}, is_mobile=True)
    phone.goto(study.url)
    sign_in(phone, "ben")
    phone.get_by_role("heading", name="1 of 12").wait_for()
    assert phone.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [400, 400]
    assert phone.get_by_role("group", name="Does it diagnose or label the person?").get_by_role("radio", name="yes").count() == 1
    phone.close()


def test_only_this_computer_and_this_page_may_connect(study):
    """The port is bound on 127.0.0.1 alone, and a websocket from another site is refused."""
    with open("/proc/net/tcp") as file:
        bound = [line.split()[1] for line in file.readlines()[1:] if line.split()[3] == "0A" and line.split()[1].endswith(f":{study.port:04X}")]
    assert bound == [f"0100007F:{study.port:04X}"]
    headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}
    status = {}
    for origin in (study.url, "http://evil.example"):
        connection = http.client.HTTPConnection("127.0.0.1", study.port, timeout=10)
        connection.request("GET", "/ws", headers=headers | {"Origin": origin})
        status[origin] = connection.getresponse().status
        connection.close()
    assert status == {study.url: 101, "http://evil.example": 403}


def test_serving_what_is_no_study_says_so(tmp_path):
    from psychosafe_utils.rating_page import serve

    with pytest.raises(ValueError, match="study.json is missing"):
        serve(tmp_path)
