"""The page in a real browser: Debian's chromium, driven by Playwright."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_up_run import photograph, png, run
from PIL import Image

from pahi.reports import build_report
from pahi.reports.pictures import PAGE_BYTES

CHROMIUM = os.environ.get("PAHI_CHROMIUM", "/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
EVIL = "<script>window.hacked = 1</script></script><img src=x onerror='window.hacked = 2'> zebra {seed}"

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
if not Path(CHROMIUM).exists():
    pytest.skip(f"no chromium at {CHROMIUM} (apt-get install chromium)", allow_module_level=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    data = run(60)
    data["gallery"][7]["prompt"] = EVIL
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(build_report(data), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The open page; at the end: nothing on the console, nothing asked of anyone, no prompt became markup."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    page = context.new_page()
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(address)
    yield page
    assert page.evaluate("window.hacked") is None
    assert complaints == []
    assert [url for url in requests if url != address and not url.startswith("data:")] == []
    context.close()


def uplifts(page: Any) -> list[float]:
    texts = page.locator(".card .delta").all_text_contents()
    return [float(text.removesuffix(" SD").replace("\N{MINUS SIGN}", "-")) for text in texts]


def test_best_first_then_worst_first(page: Any) -> None:
    best = uplifts(page)
    assert len(best) == 24 and best == sorted(best, reverse=True)
    page.get_by_label("Order").select_option("worst")
    worst = uplifts(page)
    assert worst == sorted(worst) and worst[0] < best[-1]


def test_filter_by_kind_and_outcome(page: Any) -> None:
    page.locator(".chips button[data-kind=position]").click()
    kinds = set(page.locator(".card .meta span:first-child").all_text_contents())
    assert kinds == {"position"}
    page.locator(".chips button[data-kind='']").click()
    page.get_by_label("Outcome").select_option("loss")
    assert uplifts(page) and all(u <= 0 for u in uplifts(page))


def test_filter_by_source(page: Any) -> None:
    page.get_by_label("Source").select_option("own")
    assert page.get_by_role("status").text_content() == "Showing 20 of 20 pairs"
    page.locator(".card .open").first.click()
    assert "own" in page.locator("#row-facts").text_content()


def test_filter_by_a_range_of_uplift_or_of_a_reward(page: Any) -> None:
    page.get_by_label("At least").fill("0.2")
    page.get_by_label("At most").fill("0.9")
    within = uplifts(page)
    assert within and all(0.2 <= u <= 0.9 for u in within)
    page.get_by_label("Range of", exact=True).select_option("pick_beta")
    assert page.locator(".card").count() == 0  # raw scores lie around 17.5
    page.get_by_label("At least").fill("17.6")
    page.get_by_label("At most").fill("")
    assert uplifts(page) and min(uplifts(page)) >= 0.3  # 17.5 + 0.3 uplift


def test_the_command_is_one_that_a_shell_takes_apart_again(page: Any) -> None:
    import shlex

    page.get_by_label("Search").fill("zebra")
    page.locator(".card .open").click()
    typed = shlex.split(page.locator("#row-command").text_content())
    assert typed[:3] == ["pahi", "sample", EVIL] and typed[3] == "--seed"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("opened", [False, True], ids=["page", "dialog"])
def test_axe_finds_nothing_serious(page: Any, scheme: str, opened: bool) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    if opened:
        page.locator(".card .open").first.click()
    found = axe.Axe().run(page).response["violations"]
    serious = [v for v in found if v["impact"] in ("serious", "critical")]
    assert [(v["id"], v["help"], v["nodes"][0]["html"][:200], v["nodes"][0]["failureSummary"]) for v in serious] == []


def test_search_and_a_prompt_that_is_markup(page: Any) -> None:
    page.get_by_label("Search").fill("ZEBRA script")
    assert page.locator(".card .open").all_text_contents() == [EVIL]
    assert page.get_by_role("status").text_content() == "Showing 1 of 1 pairs"
    page.get_by_label("Search").fill("no such words")
    assert page.locator(".card").count() == 0
    assert page.get_by_role("status").text_content() == "No pair matches"


def test_show_more_moves_the_focus_to_the_first_new_card(page: Any) -> None:
    page.get_by_role("button", name="Show 24 more").press("Enter")
    assert page.locator(".card").count() == 48
    new = page.locator(".card .open").nth(24).text_content()
    assert page.evaluate("document.activeElement.textContent") == new
    page.get_by_role("button", name="Show 12 more").click()
    assert not page.locator("#more").is_visible()


def test_slider_by_mouse_and_keyboard(page: Any) -> None:
    page.get_by_label("View").select_option("slide")
    slider = page.get_by_role("slider").first
    cut = "e => getComputedStyle(e.closest('.compare').querySelector('.after')).clipPath"
    assert "50%" in slider.evaluate(cut)
    slider.focus()
    page.keyboard.press("End")
    assert "100%" in slider.evaluate(cut)
    assert slider.get_attribute("aria-valuetext") == "100% before, 0% after"
    box = slider.bounding_box()
    slider.click(position={"x": box["width"] * 0.25, "y": box["height"] / 2})
    assert 20 <= float(slider.input_value()) <= 30


def test_dialog_by_keyboard(page: Any) -> None:
    first = page.locator(".card .open").first
    first.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    dialog.wait_for(state="visible")
    text = dialog.text_content()
    assert first.text_content() in text and "pick_beta" in text and "pahi sample '" in text
    assert "from train" in text and "3f3a90c1be27" in text  # which predictor it was
    page.keyboard.press("ArrowRight")
    assert page.locator("#row-place").text_content() == "2 of 60"
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    # Focus comes back in the dialog's close event, which the browser sends a moment later.
    page.wait_for_function("document.activeElement.closest('.card') === document.querySelectorAll('.card')[1]")


def test_hero_goes_from_best_to_worst(page: Any) -> None:
    before = page.locator("#hero-prompt").text_content()
    page.get_by_role("button", name="Largest loss").click()
    assert page.locator("#hero-prompt").text_content() != before
    assert page.locator("#hero-uplift").text_content().startswith("\N{MINUS SIGN}")


def test_pictures_load_and_small_ones_are_crisp(page: Any) -> None:
    picture = page.locator(".card img").first
    picture.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('.card img').naturalWidth === 64")
    assert picture.evaluate("e => getComputedStyle(e).imageRendering") == "pixelated"


def test_the_full_picture_comes_on_click(browser: Any, tmp_path: Path) -> None:
    data = run(30)
    for row in data["gallery"]:
        row.update(
            before=png(Image.new("RGB", (512, 512), (200, 30, 30))),
            after=png(Image.new("RGB", (512, 512), (30, 30, 200))),
        )
    path = tmp_path / "report.html"
    path.write_text(build_report(data), encoding="utf-8")
    page = browser.new_page()
    page.goto(path.as_uri())
    widths = "[...document.querySelectorAll('%s img')].map(e => e.naturalWidth)"
    page.locator(".card img").first.scroll_into_view_if_needed()
    page.wait_for_function(f"() => {widths % '.card:first-child'}.join() === '256,256'")
    page.locator(".card .open").first.click()
    page.wait_for_function(f"() => {widths % '#row-pictures'}.join() === '512,512'")
    assert not page.locator("#row-thumbnail").is_visible()
    assert page.evaluate(widths % "#hero .duo") == [512, 512]
    page.close()


def test_dark_by_system_and_by_button(page: Any) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    button = page.get_by_role("button", name="Dark")
    button.click()
    dark = page.evaluate(background)
    assert dark != light and button.get_attribute("aria-pressed") == "true"
    page.reload()
    assert page.evaluate(background) == dark
    page.evaluate("localStorage.clear()")
    page.emulate_media(color_scheme="dark")
    page.reload()
    assert page.evaluate(background) == dark


def test_every_control_has_a_name_and_ids_are_unique(page: Any) -> None:
    nameless = page.evaluate(
        """[...document.querySelectorAll('button, input, select, a, [role=img], [role=region]')].filter(e =>
             !(e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.length
               || e.getAttribute('aria-labelledby'))).map(e => e.outerHTML)"""
    )
    assert nameless == []
    assert (
        page.evaluate("(i => i.length - new Set(i).size)([...document.querySelectorAll('[id]')].map(e => e.id))") == 0
    )
    assert page.locator("h1").count() == 1
    assert page.locator("img:not([alt])").count() == 0


@pytest.mark.parametrize("width", [320, 390, 768, 1920])
def test_nothing_sticks_out(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_no_word_is_torn(page: Any, width: int) -> None:
    """Neither a table's heading nor an option of the command has a line break inside."""
    page.set_viewport_size({"width": width, "height": 800})
    page.locator(".card .open").first.click()
    torn = """([selector, word]) => [...document.querySelectorAll(selector)].flatMap(e => {
        const walker = document.createTreeWalker(e, NodeFilter.SHOW_TEXT), found = [];
        for (let node = walker.nextNode(); node; node = walker.nextNode())
            for (const match of node.data.matchAll(new RegExp(word, 'g'))) {
                const range = document.createRange();
                range.setStart(node, match.index);
                range.setEnd(node, match.index + match[0].length);
                if (new Set([...range.getClientRects()].map(r => Math.round(r.top))).size > 1) found.push(match[0]);
            }
        return found;
    })"""
    assert page.evaluate(torn, ["table thead th", r"\S+"]) == []
    assert page.evaluate(torn, ["#row-command", "--[a-z]+"]) == []


def test_page_without_pictures(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(build_report({"dataset": "empty"}), encoding="utf-8")
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text))
    page.goto(path.as_uri())
    page.get_by_role("button", name="Dark").click()
    assert errors == [] and page.locator("html").get_attribute("data-theme") in ("light", "dark")
    page.close()


def test_five_thousand_pairs_are_quick(browser: Any, tmp_path: Path) -> None:
    data = run(100)
    for i, row in enumerate(data["gallery"]):
        row.update(before=photograph(96, i % 20, "JPEG"), after=photograph(96, 20 + i % 20, "JPEG"))
    data["gallery"] = [
        {**row, "prompt_id": f"{i}-{row['prompt_id']}", "seed": i} for i in range(50) for row in data["gallery"]
    ]
    path = tmp_path / "report.html"
    html = build_report(data)
    assert 0.8 * PAGE_BYTES < len(html) < 1.2 * PAGE_BYTES  # as large as a page becomes
    path.write_text(html, encoding="utf-8")
    page = browser.new_page()
    # In the page's own processor time, which other programs on the machine do not change.
    meter = page.context.new_cdp_session(page)
    meter.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto(path.as_uri(), wait_until="domcontentloaded")
    assert page.locator("#status").text_content() == "Showing 24 of 5000 pairs"
    metrics = {m["name"]: m["value"] for m in meter.send("Performance.getMetrics")["metrics"]}
    ready = 1000 * metrics["TaskDuration"]
    spent = page.evaluate(
        """() => { const start = performance.now(), search = document.getElementById('search');
                   search.value = 'circle'; search.dispatchEvent(new Event('input'));
                   return performance.now() - start; }"""
    )
    assert 0 < ready < 2000 and spent < 500 * 3  # the aim; the search has room for a busy machine
    page.close()
