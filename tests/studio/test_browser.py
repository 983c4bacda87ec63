"""The page in real Chromium, against a server of its own process. Skipped where there is no Chromium or Playwright."""

import contextlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tokvid.io.media import write_image, write_video

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
pytest.importorskip("fastapi", reason="needs fastapi, of the extra studio")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
]
PATIENCE = 120_000  # milliseconds
expect = playwright.expect
expect.set_options(timeout=PATIENCE)


@contextlib.contextmanager
def serving(folder, weights):
    """A studio in another process; gives its address."""
    command = [sys.executable, "-m", "tokvid", "studio", "--port", "0"]
    command += ["--folder", str(folder), "--weights", str(weights)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield re.search(r"http://\S+", server.stdout.readline()).group()
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as engine:
        # Containers that run as root allow Chromium no sandbox; the only page is our own.
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(editing_weights, tmp_path_factory):
    with serving(tmp_path_factory.mktemp("studio"), editing_weights) as address:
        yield address


@pytest.fixture
def page(chromium, address):
    """The page, in a profile of its own; what the browser complains of fails the test."""
    context = chromium.new_context(locale="en-GB", viewport={"width": 1280, "height": 900})
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.goto(address)
    expect(page.get_by_role("button", name="Generate", exact=True)).to_be_visible(timeout=PATIENCE)
    yield page
    context.close()
    assert not [text for text in complaints if "status of 4" not in text], complaints  # refused requests


def card(page, n):
    return page.get_by_role("group", name=f"Scene {n}", exact=True)


def tell(page, *prompts, seconds="1"):
    """Writes a story on the page, a card each."""
    for n, prompt in enumerate(prompts, 1):
        if n > 1:
            page.get_by_role("button", name="Add a scene").click()
        page.get_by_label(f"Prompt of scene {n}").fill(prompt)
        card(page, n).get_by_label("Seconds").fill(seconds)


def generate(page):
    page.get_by_role("button", name="Generate", exact=True).click()


def finished(page):
    expect(page.locator("#stage .status")).to_contain_text("Done in", timeout=PATIENCE)


def test_a_story_is_generated_changed_and_downloaded(page):
    tell(page, "a red circle", "a blue star")
    page.keyboard.press("Control+Enter")
    finished(page)
    expect(page.locator("#stage canvas")).to_be_visible()
    for n in (1, 2):
        expect(card(page, n).locator(".badge")).to_have_text("done")
    for name, suffix in (("MP4", ".mp4"), ("GIF", ".gif"), ("Contact sheet", ".png"), ("Story file", ".yaml")):
        with page.expect_download() as download:
            page.locator("#stage").get_by_role("link", name=name, exact=True).click()
        assert download.value.suggested_filename.endswith(suffix) and download.value.path().stat().st_size
    card(page, 2).get_by_role("button", name="Generate again").click()
    expect(page.locator("#history .row")).to_have_count(2)
    finished(page)
    expect(card(page, 1).locator(".badge")).to_have_text("done")


def test_a_reloaded_page_shows_the_video_with_its_first_look_at_the_server(page):
    tell(page, "a red circle")
    generate(page)
    finished(page)
    asked = []

    def answer(route):
        asked.append(route.request.url)
        if len(asked) == 1:
            route.continue_()  # later requests wait for an answer without end

    page.route("**/api/takes", answer)
    page.reload()
    expect(page.locator("#stage canvas")).to_be_visible(timeout=20_000)


def test_cards_by_keyboard(page):
    tell(page, "one", "two")
    page.get_by_label("Prompt of scene 2").press("Alt+ArrowUp")
    expect(page.get_by_label("Prompt of scene 1")).to_have_value("two")
    expect(page.get_by_label("Prompt of scene 1")).to_be_focused()
    page.get_by_role("button", name="Duplicate scene 1").press("Enter")
    expect(page.get_by_label("Prompt of scene 2")).to_have_value("two")
    page.get_by_role("button", name="Delete scene 3").press("Enter")
    page.get_by_role("button", name="Undo").press("Enter")
    expect(page.get_by_label("Prompt of scene 3")).to_have_value("one")
    page.reload()
    expect(page.get_by_label("Prompt of scene 3")).to_have_value("one")
    page.get_by_label("Prompt of scene 2").fill(" ")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("alert").filter(has_text="Scene 2 has no prompt")).to_be_visible()
    expect(page.get_by_label("Prompt of scene 2")).to_be_focused()


def test_what_is_missing_or_wrong_on_a_card_is_named(page):
    generate(page)
    expect(page.get_by_role("alert").filter(has_text="The scene has no prompt yet")).to_be_visible()
    tell(page, "a red circle")
    card(page, 1).get_by_label("Seed", exact=True).fill("1.5")
    generate(page)
    said = "Seed of scene 1 should be a whole number from 0 to 4294967295."
    expect(page.get_by_role("alert").filter(has_text=said)).to_be_visible()
    page.get_by_role("button", name="中文").click()
    expect(page.get_by_role("alert")).to_have_count(0)  # it would be in English still
    page.get_by_role("button", name="English").click()


def test_a_video_of_the_history_opens_in_an_empty_editor(page):
    tell(page, "a red circle")
    generate(page)
    finished(page)
    row = page.get_by_role("button", name=re.compile("Show video .*a red circle")).first
    page.get_by_role("button", name="New story").click()
    expect(page.get_by_label("Prompt of scene 1")).to_have_value("")
    row.click()
    expect(page.get_by_label("Prompt of scene 1")).to_have_value("a red circle")
    page.get_by_label("Prompt of scene 1").fill("my own")
    row.click()
    expect(page.get_by_label("Prompt of scene 1")).to_have_value("my own")


def test_a_story_ends_at_the_most_scenes(page):
    with_limit(page, scenes=2)
    tell(page, "one", "two")
    for button in ("Add a scene", "Duplicate scene 1"):
        page.get_by_role("button", name=button).click()
        expect(page.get_by_role("alert")).to_have_text([re.compile("A story has at most 2 scenes")])
        expect(page.locator("#scenes .scene")).to_have_count(2)
        page.get_by_role("alert").get_by_role("button", name="Close").click()


def with_limit(page, **limits):
    """Loads the page anew from a server that says other limits."""

    def answer(route):
        facts = route.fetch().json()
        route.fulfill(json=facts | {"limits": facts["limits"] | limits})

    page.route("**/api/studio", answer)
    page.reload()


def test_cards_are_dragged(page):
    tell(page, "one", "two", "three")
    head = card(page, 1).locator(".scene-head")
    card(page, 3).locator(".grip").drag_to(head, target_position={"x": 60, "y": 2})
    for n, prompt in enumerate(("three", "one", "two"), 1):
        expect(page.get_by_label(f"Prompt of scene {n}")).to_have_value(prompt)
    card(page, 1).locator(".grip").drag_to(card(page, 2).get_by_role("button", name="Generate again"))
    for n, prompt in enumerate(("one", "three", "two"), 1):
        expect(page.get_by_label(f"Prompt of scene {n}")).to_have_value(prompt)


def test_a_part_of_a_generated_video_is_replaced(page):
    tell(page, "a red circle")
    generate(page)
    finished(page)
    page.locator("#stage").get_by_role("button", name="Edit this video").click()
    page.get_by_label("Task").select_option("inpaint")
    generate(page)
    expect(page.get_by_role("alert").filter(has_text="Draw a box on the first frame")).to_be_visible()
    frame = page.get_by_role("img", name="First frame with the box")
    frame.scroll_into_view_if_needed()
    place = frame.bounding_box()
    page.mouse.move(place["x"] + place["width"] / 4, place["y"] + place["height"] / 2)
    page.mouse.down()
    page.mouse.move(place["x"] + place["width"] * 3 / 4, place["y"] + place["height"] - 1, steps=4)
    page.mouse.up()
    for name, value in (("Left", 64), ("Top", 128), ("Width", 128), ("Height", 128)):
        shown = float(page.get_by_label(name, exact=True).input_value())
        assert abs(shown - value) <= 4, (name, shown)
    page.get_by_label("Prompt of the edit").fill("a blue star")
    page.reload()
    expect(page.get_by_label("Prompt of the edit")).to_have_value("a blue star")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#history .row").first).to_contain_text("Inpaint · a blue star")
    finished(page)
    page.get_by_text("Generate it with the command line").click()
    expect(page.locator("#stage pre").first).to_contain_text(re.compile("--task inpaint .*--box 6"))
    page.locator("#edit").get_by_label("Guidance").fill("")
    generate(page)
    expect(page.get_by_role("alert").filter(has_text="Guidance should be a number from 0 to 100.")).to_be_visible()
    page.locator("#edit").get_by_label("Guidance").fill("2")
    page.get_by_label("Left", exact=True).fill("200")
    generate(page)
    expect(
        page.get_by_role("alert").filter(has_text=re.compile(r"Width should be a whole number from 1 to \d+\."))
    ).to_be_visible()
    page.get_by_role("button", name="Tell a story").click()
    expect(page.get_by_label("Prompt of scene 1")).to_have_value("a red circle")


def test_variants_are_compared_and_one_is_chosen(page):
    titles = page.locator("#history .row-title")
    before = max((take["number"] for take in all_takes(page)), default=0)
    tell(page, "a green square", "a white triangle")
    card(page, 2).get_by_role("button", name="Four variants").click()
    choose = card(page, 2).get_by_role("button", name="Choose C")
    expect(choose).to_be_enabled(timeout=PATIENCE)
    seed = re.search(r"\d+", card(page, 2).locator(".variant .status").nth(2).inner_text()).group()
    page.reload()
    expect(choose).to_be_enabled(timeout=PATIENCE)
    choose.click()
    expect(card(page, 2).get_by_label("Seed", exact=True)).to_have_value(seed)
    expect(card(page, 2).locator(".variant")).to_have_count(0)
    finished(page)
    expect(titles.first).to_have_text(re.compile(rf"^{before + 1}\."))


def test_uploads_good_and_hostile(page, tmp_path):
    write_image(tmp_path / "a.png", np.full((20, 30, 3), 200, np.uint8))
    (tmp_path / "b.png").write_bytes(b"<script>alert(1)</script>")
    page.set_input_files("#file", tmp_path / "b.png")
    expect(page.get_by_role("alert").filter(has_text="cannot be used")).to_be_visible(timeout=PATIENCE)
    page.set_input_files("#file", tmp_path / "a.png")
    expect(page.get_by_text("Picture, 30×20: the first frame")).to_be_visible(timeout=PATIENCE)
    expect(page.locator("#opening").get_by_label("Size")).to_have_value("1")
    page.locator("#opening").get_by_label("Size").select_option("48×48")
    tell(page, "a circle")
    page.reload()
    expect(page.locator("#opening").get_by_label("Size")).to_have_value("3")
    generate(page)
    finished(page)
    expect(page.locator("#stage .warnings")).to_contain_text("a.png is 30x20; only its middle, 20x20, is used")
    page.get_by_text("Generate it with the command line").click()
    expect(page.locator("#stage pre").first).to_contain_text("--image opening.png --larger 3")
    expect(page.locator("#stage").get_by_role("link", name="Opening")).to_be_visible()
    page.get_by_role("button", name="Remove").click()
    expect(page.get_by_text("None: the first scene starts")).to_be_visible()


def test_a_first_frame_for_an_edit(page, tmp_path):
    write_image(tmp_path / "given.png", np.full((32, 32, 3), 90, np.uint8))
    write_image(tmp_path / "wanted.png", np.full((32, 32, 3), (200, 90, 30), np.uint8))
    page.get_by_role("button", name="Edit a video").click()
    page.set_input_files("#source", tmp_path / "given.png")
    expect(page.get_by_text("given.png, 32×32")).to_be_visible(timeout=PATIENCE)
    page.locator("#edit .known summary").click()
    page.get_by_label("Task").select_option("inpaint")
    expect(page.locator("#first")).to_have_count(0)
    expect(page.locator("#edit .known p")).to_be_visible()
    page.get_by_label("Task").select_option("restyle")
    expect(page.locator("#edit").get_by_label("Size")).to_have_count(0)
    page.set_input_files("#first", tmp_path / "wanted.png")
    expect(page.get_by_text("wanted.png, 32×32: the other frames follow it")).to_be_visible(timeout=PATIENCE)
    page.locator("#edit").get_by_label("Size").select_option("48×48")
    page.get_by_label("Prompt of the edit").fill("a blue star")
    page.reload()
    expect(page.get_by_text("wanted.png, 32×32: the other frames follow it")).to_be_visible()
    generate(page)
    finished(page)
    expect(page.locator("#history .row").first).to_contain_text("Restyle · a blue star")
    page.get_by_text("Generate it with the command line").click()
    expect(page.locator("#stage pre").first).to_contain_text(re.compile("--first first.png .*--larger 3"))
    expect(page.locator("#stage").get_by_role("link", name="First frame")).to_be_visible()
    page.locator("#edit").get_by_role("group", name="First frame").get_by_role("button", name="Remove").click()
    expect(page.get_by_text("With a picture of how the first frame should look")).to_be_visible()


def test_a_clip_gets_more_frames_and_a_loop(page, tmp_path):
    write_video(tmp_path / "clip.mp4", np.full((6, 32, 32, 3), 90, np.uint8), 8)
    page.get_by_role("button", name="Edit a video").click()
    page.set_input_files("#source", tmp_path / "clip.mp4")
    expect(page.get_by_text("clip.mp4, 32×32")).to_be_visible(timeout=PATIENCE)
    page.get_by_label("Task").select_option("interpolation")
    page.get_by_label("Times as many frames").select_option("4")
    page.get_by_label("Draws").select_option("8")
    page.locator("#edit").get_by_label("Size").select_option("16×16")
    page.reload()
    expect(page.get_by_label("Times as many frames")).to_have_value("4")
    expect(page.get_by_label("Draws")).to_have_value("8")
    generate(page)
    finished(page)
    expect(page.locator("#history .row").first).to_contain_text("Interpolate")
    page.get_by_text("Generate it with the command line").click()
    shell = page.locator("#stage pre").first
    expect(shell).to_contain_text(re.compile("^tokvid interpolate source.mp4 .*--factor 4 --draws 8 --fps 8"))
    expect(page.locator("#stage pre").last).to_contain_text('interpolate("source.mp4", prompt="", factor=4, draws=8')
    page.get_by_label("Task").select_option("infilling")
    expect(page.get_by_label("Draws")).to_have_count(0)
    generate(page)
    finished(page)
    expect(page.locator("#history .row").first).to_contain_text("Loop")
    expect(shell).to_contain_text(re.compile("^tokvid loop source.mp4 "))


def test_a_picture_moves_along_a_drawn_path(page, tmp_path):
    write_image(tmp_path / "wide.png", np.full((32, 48, 3), 90, np.uint8))
    page.get_by_role("button", name="Edit a video").click()
    page.get_by_label("Task").select_option("animate")
    generate(page)
    expect(page.get_by_role("alert").filter(has_text="Choose a picture of one object")).to_be_visible()
    page.set_input_files("#source", tmp_path / "wide.png")
    picture = page.get_by_role("img", name="Picture with the path")
    expect(page.get_by_text("wide.png, 48×32")).to_be_visible(timeout=PATIENCE)
    generate(page)
    expect(page.get_by_role("alert").filter(has_text="Draw a path on the picture")).to_be_visible()
    picture.scroll_into_view_if_needed()
    place = picture.bounding_box()
    assert abs(place["width"] - place["height"]) <= 1  # only the middle is used
    page.mouse.move(place["x"] + place["width"] / 4, place["y"] + place["height"] / 4)
    page.mouse.down()
    for x, y in ((0.75, 0.25), (0.75, 0.5)):
        page.mouse.move(place["x"] + place["width"] * x, place["y"] + place["height"] * y, steps=8)
    page.mouse.up()
    for name, value in (("From left", 25), ("From top", 25), ("To left", 75), ("To top", 50)):
        assert abs(float(page.get_by_label(name).input_value()) - value) <= 2, name
    page.locator("#edit").get_by_label("Seconds").fill("1")
    page.reload()
    expect(page.get_by_label("To left")).to_have_value(re.compile("7[3-7]"))
    generate(page)
    expect(page.locator("#history .row").first).to_contain_text("Animate")
    finished(page)
    points, fps = drawn_track(page)
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    assert len(points) == fps and abs(steps.sum() - 0.75) < 0.08
    assert np.allclose(np.sort(steps)[1:], steps.max(), rtol=0.05)  # but for the one around the corner
    page.get_by_text("Generate it with the command line").click()
    expect(page.locator("#stage pre").first).to_contain_text(
        re.compile(r"animate source.png .*--track tokvid-\d+.json")
    )
    expect(page.locator("#stage").get_by_role("link", name="Track")).to_be_visible()
    generate(page)
    expect(page.get_by_text("This edit has been generated already")).to_be_visible()
    page.get_by_label("To top").fill("90")
    generate(page)
    finished(page)
    points, _ = drawn_track(page)
    assert np.allclose(points[-1] - points[0], [0.5, 0.65], atol=0.05)


def test_a_large_picture_is_shown_whole_where_one_draws(page, tmp_path):
    """The page has it with fewer pixels."""
    large = np.zeros((800, 1600, 3), np.uint8)
    large[:, :800], large[:, 800:] = (250, 0, 0), (0, 0, 250)
    write_image(tmp_path / "large.png", large)
    page.get_by_role("button", name="Edit a video").click()
    page.get_by_label("Task").select_option("inpaint")
    page.set_input_files("#source", tmp_path / "large.png")
    expect(page.get_by_text("large.png, 1600×800")).to_be_visible(timeout=PATIENCE)
    for name, value in (("Left", 1200), ("Top", 0), ("Width", 400), ("Height", 800)):
        page.get_by_label(name, exact=True).fill(str(value))
    colors = """(canvas, shares) => shares.map((share) => [...canvas.getContext("2d")
        .getImageData(Math.floor(share * canvas.width), canvas.height / 2, 1, 1).data.slice(0, 3)])"""
    left, middle, inside = page.get_by_role("img", name="First frame with the box").evaluate(colors, [0.1, 0.6, 0.9])
    assert left[0] > left[2] and 0 < middle[2] < 200 and inside[2] > 200, "the box alone is not darkened"
    page.get_by_label("Task").select_option("animate")
    picture = page.get_by_role("img", name="Picture with the path")
    picture.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('#edit canvas').width > 300")
    left, right = picture.evaluate(colors, [0.1, 0.9])
    assert left[0] > 200 and right[2] > 200 and picture.evaluate("(canvas) => canvas.width === canvas.height")


def drawn_track(page):
    """The points (T, 2) of the newest take's track, and its rate."""
    take = all_takes(page)[0]
    return np.array(take["own"]["track"]["points"])[:, 0], take["own"]["track"]["fps"]


def test_a_mistake_is_told_once_until_it_is_mended(page):
    tell(page, "a red circle", seconds="0")
    for _ in range(3):
        generate(page)
    expect(page.get_by_role("alert")).to_have_text(["Seconds of scene 1 should be a number from 0.1 to 60."])
    card(page, 1).get_by_label("Seconds").fill("1")
    expect(page.get_by_role("alert")).to_have_count(0)


def test_each_of_two_scenes_deleted_in_a_row_comes_back(page):
    tell(page, "a red circle", "a blue star", "a purple square")
    for _ in range(2):
        card(page, 1).get_by_role("button", name="Delete").click()
    expect(page.get_by_role("button", name="Undo")).to_have_count(2)
    page.get_by_role("button", name="Undo").last.click()
    expect(page.get_by_label("Prompt of scene 1")).to_have_value("a blue star")


def slowly(page, milliseconds=700):
    """From here on, requests that change something take a while on their way."""
    page.evaluate(
        """(wait) => {
            const [ask, send] = [window.fetch, XMLHttpRequest.prototype.send];
            const late = () => new Promise((resolve) => setTimeout(resolve, wait));
            window.fetch = async (path, options) => {
                if (options?.method !== "GET") await late();
                return ask(path, options);
            };
            XMLHttpRequest.prototype.send = function (body) {
                late().then(() => send.call(this, body));
            };
        }""",
        milliseconds,
    )


def all_takes(page):
    return page.evaluate("fetch('/api/takes', {method: 'GET'}).then((answer) => answer.json())")["takes"]


def test_a_second_press_asks_for_no_second_video(page):
    tell(page, "a double star")
    slowly(page)
    page.get_by_role("button", name="Generate", exact=True).dblclick()
    expect(page.locator("#history .row").first).to_contain_text("a double star")
    page.wait_for_timeout(1500)
    assert len(takes_of(page, "a double star")) == 1
    card(page, 1).get_by_role("button", name="Four variants").dblclick()
    expect(card(page, 1).get_by_role("button", name="Choose D")).to_be_visible()
    page.wait_for_timeout(1500)
    assert len(takes_of(page, "a double star")) == 5
    card(page, 1).get_by_role("button", name="Close without choosing").click()


def takes_of(page, prompt):
    return [take for take in all_takes(page) if take["story"]["segments"][0]["prompt"] == prompt]


def focused(page):
    """The name of what has the focus."""
    return page.evaluate(
        """() => {
            const at = document.activeElement;
            return at.id || at.getAttribute("aria-label") || (at.labels?.[0] ?? at).textContent.trim().slice(0, 40);
        }"""
    )


def press(page, button):
    button.focus()
    page.keyboard.press("Enter")


def test_the_focus_stays_where_one_works(page, tmp_path):
    write_image(tmp_path / "a.png", np.full((20, 30, 3), 200, np.uint8))
    press(page, page.get_by_role("button", name="Edit a video"))
    assert focused(page) == "Edit a video"
    press(page, page.get_by_role("button", name="Tell a story"))
    page.locator("#file").focus()
    page.set_input_files("#file", tmp_path / "a.png")
    expect(page.get_by_text("Picture, 30×20")).to_be_visible()
    assert focused(page) == "file"
    press(page, page.locator("#opening").get_by_role("button", name="Remove"))
    expect(page.get_by_text("None: the first scene starts")).to_be_visible()
    assert focused(page) == "file"
    generate(page)
    press(page, page.get_by_role("alert").get_by_role("button", name="Close"))
    assert focused(page) == "Prompt of scene 1"
    tell(page, *["a focused star"] * 3, seconds="60")
    generate(page)
    press(page, page.locator("#stage").get_by_role("button", name="Stop"))
    expect(page.locator("#stage").get_by_role("button", name="Continue")).to_be_focused()
    page.on("dialog", lambda dialog: dialog.accept())
    press(page, page.get_by_role("button", name=re.compile("Delete video")).first)
    expect(page.get_by_role("button", name=re.compile("Show video .*a focused star"))).to_have_count(0)
    assert focused(page).startswith("Show video") or focused(page) == "history"


def test_an_upload_that_arrives_disturbs_nobody(page, tmp_path):
    write_image(tmp_path / "a.png", np.full((32, 32, 3), 200, np.uint8))
    page.get_by_role("button", name="Edit a video").click()
    slowly(page)
    page.set_input_files("#source", tmp_path / "a.png")
    prompt = page.get_by_label("Prompt of the edit")
    prompt.fill("a red")
    task = page.get_by_label("Task").input_value()
    expect(page.get_by_text("a.png, 32×32")).to_be_visible()
    page.keyboard.type(" rose")
    expect(prompt).to_have_value("a red rose")
    expect(page.get_by_label("Task")).to_have_value(task)
    page.set_input_files("#source", tmp_path / "a.png")
    page.get_by_role("button", name="Tell a story").click()
    page.get_by_label("Prompt of scene 1").fill("a blue")
    page.wait_for_timeout(1500)
    page.keyboard.type(" star")
    expect(page.get_by_label("Prompt of scene 1")).to_have_value("a blue star")


def test_a_prompt_is_typed_on_where_its_variants_are_closed(page):
    tell(page, "a plain circle")
    card(page, 1).get_by_role("button", name="Four variants").click()
    expect(card(page, 1).get_by_role("button", name="Choose D")).to_be_visible()
    page.get_by_label("Prompt of scene 1").focus()
    page.keyboard.press("End")
    page.keyboard.type(" moves up")
    expect(page.get_by_label("Prompt of scene 1")).to_have_value("a plain circle moves up")
    expect(card(page, 1).locator(".variant")).to_have_count(0)


def fake_take(number, **fields):
    segments = [{"prompt": f"fake {number}", "seconds": 1, "guidance": 3, "seed": number}]
    fake = {"id": f"{number:016x}", "number": number, "weights": "x", "story": {"fps": 8, "segments": segments}}
    fake |= {"opening": None, "task": "", "method": "story", "own": {}, "larger": 1, "until": None, "created": number}
    fake |= {"status": "done", "done": 0, "total": 8, "known": 0, "fps": 8, "size": [0, 0], "spans": [[0, 8]]}
    return fake | {"files": [], "error": "", "warnings": [], "seconds": 1.0, "left": None} | fields


def answered(page, takes):
    """The server's history is `takes` from here on, which may be changed; the page has them."""
    page.route("**/api/takes", lambda route: route.fulfill(json={"takes": takes, "more": False}))
    expect(page.locator("#history .row-title")).to_have_text(
        [f"{take['number']}. fake {take['number']}" for take in takes]
    )


def test_the_end_of_each_video_is_said(page):
    takes = [fake_take(2, status="waiting"), fake_take(1, status="making")]
    answered(page, takes)
    expect(page.locator("#history .row")).to_have_count(2)
    takes[1] |= {"status": "done"}
    expect(page.locator("#live")).to_have_text("Video 1 is done.")
    takes[0] |= {"status": "failed", "error": "too warm"}
    expect(page.locator("#live")).to_have_text("Video 2 failed: too warm")


def test_commands_are_those_of_the_video_that_is_shown(page):
    answered(page, [fake_take(2, files=["mp4"]), fake_take(1, files=["mp4"], opening="f" * 16)])
    upload = {"id": "f" * 16, "name": "a.png", "kind": "picture", "suffix": ".png", "width": 8, "height": 8}
    late = []
    page.route("**/api/uploads/*", lambda route: late.append(route))
    rows = page.locator("#history .row-open")
    expect(rows).to_have_count(2)
    page.get_by_label("Prompt of scene 1").fill("so that rows are only shown")
    rows.nth(1).click()
    rows.nth(0).click()
    shell = page.locator("#stage pre").first
    expect(shell).to_have_text(re.compile("tokvid-2.yaml"))
    late[0].fulfill(json=upload | {"seconds": 0, "fps": 0})
    page.wait_for_timeout(300)
    expect(shell).to_have_text(re.compile("tokvid-2.yaml"))


def contrast(page, selector, pseudo=None):
    """Of an element's text with its background (WCAG 2)."""
    read = "(e, pseudo) => [getComputedStyle(e, pseudo).color, getComputedStyle(e).backgroundColor]"
    lights = []
    for color in page.locator(selector).first.evaluate(read, pseudo):
        shares = np.array([float(value) for value in re.findall(r"[0-9.]+", color)[:3]]) / 255
        linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
        lights.append(linear @ [0.2126, 0.7152, 0.0722])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_placeholders_are_legible_in_both_themes(page):
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        assert contrast(page, ".scene textarea", "::placeholder") >= 4.5, theme


def test_the_video_on_the_stage_is_marked_in_forced_colours_too(page):
    answered(page, [fake_take(2), fake_take(1)])
    rows = page.locator("#history .row")
    expect(rows).to_have_count(2)
    page.get_by_label("Prompt of scene 1").fill("so that rows are only shown")
    rows.nth(1).locator(".row-open").click()
    page.emulate_media(forced_colors="active")
    shown, other = rows.evaluate_all("(all) => all.map((row) => getComputedStyle(row).borderColor).reverse()")
    assert shown != other


def test_scenes_are_a_list_of_named_groups(page):
    tell(page, "one", "two")
    assert (
        page.locator("#scenes > *").evaluate_all("(all) => all.map((e) => [e.localName, e.role])") == [["li", None]] * 3
    )
    expect(page.locator("#scenes > li > [role=group]")).to_have_count(2)


def test_prompts_run_as_their_script_does(page):
    tell(page, "a red circle", "دائرة حمراء!")
    direction = "(e) => getComputedStyle(e).direction"
    assert [page.get_by_label(f"Prompt of scene {n}").evaluate(direction) for n in (1, 2)] == ["ltr", "rtl"]


def test_the_bar_at_the_bottom_hides_nothing_that_has_the_focus(page):
    tell(page, *["a circle"] * 5)
    covered = """() => {
        const focused = document.activeElement;
        const [at, bar] = [focused, document.querySelector("#actions")].map((e) => e.getBoundingClientRect());
        return focused.closest("#scenes") && at.top < bar.bottom && at.top + 1 > bar.top;
    }"""
    for width, height in ((1280, 700), (390, 700)):
        page.set_viewport_size({"width": width, "height": height})
        page.evaluate("scrollTo(0, 0)")
        page.locator("#file").focus()
        for _ in range(45):
            page.keyboard.press("Tab")
            assert not page.evaluate(covered), (width, focused(page))


def test_who_wants_less_motion_starts_videos(page):
    frames = bytes(range(192)) * 16
    page.route(
        re.compile("/frames[?]"), lambda route: route.fulfill(body=frames if "first=0" in route.request.url else b"")
    )
    page.emulate_media(reduced_motion="reduce")
    page.reload()
    answered(page, [fake_take(1, done=16, total=16, size=[8, 8], spans=[[0, 16]])])
    page.locator("#history .row-open").first.click()
    expect(page.locator("#stage canvas")).to_be_visible()
    page.wait_for_timeout(700)
    expect(page.get_by_label("Position in the video")).to_have_value("0")
    page.locator("#stage").get_by_role("button", name="Play").click()
    expect(page.get_by_label("Position in the video")).not_to_have_value("0")


def test_variants_that_loop_can_be_paused(page):
    tell(page, "a paused circle")
    card(page, 1).get_by_role("button", name="Four variants").click()
    card(page, 1).get_by_role("button", name="Pause").click()
    expect(card(page, 1).get_by_role("button", name="Play")).to_be_focused()
    card(page, 1).get_by_role("button", name="Close without choosing").click()


def test_a_draft_outlives_its_weights(page):
    """The server is started again without them."""
    kept_weights = """JSON.parse(sessionStorage.getItem("tokvid.draft")).draft.weights"""
    tell(page, "a lost circle", "a lost star")
    page.evaluate(
        """() => {
            const kept = JSON.parse(sessionStorage.getItem("tokvid.draft"));
            kept.draft.weights = "gone";
            sessionStorage.setItem("tokvid.draft", JSON.stringify(kept));
        }"""
    )
    page.reload()
    expect(page.get_by_label("Prompt of scene 2")).to_have_value("a lost star")
    answered(page, [fake_take(7, weights="gone")])
    page.get_by_role("button", name="Edit the scenes of video 7").click()
    expect(page.get_by_label("Prompt of scene 1")).to_have_value("fake 7")
    expect(page.locator("#weights")).to_have_value(page.evaluate(kept_weights))


def toasts(page):
    return page.locator("#toasts .toast")


def test_a_server_that_hangs_is_told_of_until_it_answers(page):
    page.route("**/api/takes", lambda route: None)
    expect(page.locator("#offline")).to_be_visible(timeout=20_000)
    page.unroute_all(behavior="ignoreErrors")
    expect(page.locator("#offline")).to_be_hidden(timeout=20_000)


def test_an_answer_that_is_cut_is_none(page):
    page.route("**/api/takes", lambda route: route.fulfill(body='{"takes": [', content_type="application/json"))
    expect(page.locator("#offline:visible")).to_have_text(re.compile("The studio doesn't answer"))
    expect(toasts(page)).to_have_count(0)


def test_a_new_video_is_not_hidden_by_an_answer_from_before_it(page):
    tell(page, "a stale star")
    page.evaluate(
        """() => {
            const ask = window.fetch;
            window.fetch = async (path, options) => {
                const answer = await ask(path, options);
                const late = path === "/api/takes" && options.method === "GET";
                return late ? new Promise((end) => setTimeout(() => end(answer), 1500)) : answer;
            };
        }"""
    )
    with page.expect_response(lambda answer: answer.url.endswith("/api/takes")):
        pass
    generate(page)
    row = page.get_by_role("button", name=re.compile("Show video .*a stale star"))
    expect(row).to_be_visible()
    for _ in range(25):
        assert row.count() == 1
        page.wait_for_timeout(100)


def test_why_the_server_tells_nothing_is_said_once(page):
    refused = {"error": {"code": "token", "message": "open the address"}}
    page.route("**/api/takes", lambda route: route.fulfill(status=401, json=refused))
    expect(page.locator("#offline:visible")).to_have_text(re.compile("Open the link that `tokvid studio` printed"))
    page.locator("#offline").evaluate("(e) => e.replaceChildren(...e.childNodes, '!')")  # would be written anew
    page.evaluate(
        """() => {
            window.said = 0;
            const places = [document.getElementById("offline"), document.getElementById("toasts")];
            for (const place of places) new MutationObserver(() => window.said++).observe(place, { childList: true });
        }"""
    )
    page.wait_for_timeout(7000)
    assert page.evaluate("window.said") <= 1 and not toasts(page).count()


def test_frames_that_are_shown_are_fetched_once(page):
    """Also where those of the story and of a video that grows on the stage are together more than are kept."""
    asked = []
    grown = {"done": 12}

    def answer(route):
        asked.append(route.request.url)
        first = int(re.search(r"first=(\d+)", asked[-1]).group(1))
        route.fulfill(body=bytes(192 * max(0, grown["done"] - first)))

    page.route(re.compile("/frames[?]"), answer)
    code = page.request.get(f"{page.url}frames.js").text()
    assert "2 ** 28" in code
    code = code.replace("2 ** 28", "2 ** 12")
    page.route("**/frames.js", lambda route: route.fulfill(body=code, content_type="text/javascript"))
    page.reload()
    expect(page.get_by_role("button", name="Generate", exact=True)).to_be_visible()
    facts = {"weights": page.locator("#weights").input_value(), "total": 99, "size": [8, 8], "spans": [[0, 12]]}
    takes = [fake_take(2, **facts, status="making", done=12), fake_take(1, **facts, done=12)]
    answered(page, takes)
    page.get_by_role("button", name="Edit the scenes of video 1").click()
    expect(page.locator(".scene canvas.strip")).to_be_visible()
    page.get_by_role("button", name=re.compile("Show video 2")).click()
    slider = page.get_by_label("Position in the video")
    expect(slider).to_have_attribute("max", "11")
    for done in range(13, 18):
        grown["done"] = takes[0]["done"] = done
        expect(slider).to_have_attribute("max", f"{done - 1}")
    page.wait_for_timeout(1000)
    whole = [url for url in asked if f"{1:016x}/frames?first=0" in url and "count=1" not in url]
    assert len(whole) == 1


def test_a_story_whose_opening_cannot_be_had_is_not_opened_without_it(page):
    page.get_by_label("Prompt of scene 1").fill("my own")
    answered(page, [fake_take(1, opening="f" * 16)])
    gone = {"error": {"code": "missing", "message": "there is no such upload"}}
    page.route("**/api/uploads/*", lambda route: route.fulfill(status=404, json=gone))
    page.get_by_role("button", name="Edit the scenes of video 1").click()
    expect(toasts(page)).to_have_text([re.compile("No longer there: there is no such upload")])
    expect(page.get_by_label("Prompt of scene 1")).to_have_value("my own")


def test_stopping_reloading_and_two_tabs(page):
    tell(page, *["a purple star"] * 5, seconds="60")
    generate(page)
    expect(page.locator("#stage .status")).to_contain_text("frames", timeout=PATIENCE)
    page.reload()
    expect(page.locator("#stage canvas")).to_be_visible()
    other = page.context.new_page()
    other.goto(page.url)
    other.get_by_role("button", name=re.compile("Show video .*purple star")).first.click()
    other.locator("#stage").get_by_role("button", name="Stop").click()
    expect(page.locator("#stage .status")).to_contain_text("Stopped")
    other.close()
    page.locator("#stage").get_by_role("button", name="Continue").click()
    expect(page.locator("#stage .status")).to_contain_text("frames")
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name=re.compile("Delete video")).first.click()
    expect(page.locator("#stage canvas")).to_be_hidden()


def test_a_restart_of_the_server_finishes_the_story(chromium, tiny_weights, tmp_path):
    context = chromium.new_context(locale="zh-CN")
    page = context.new_page()
    with serving(tmp_path, tiny_weights) as address:
        page.goto(address)
        page.get_by_label("第 1 幕的提示词").fill("a red circle")
        page.get_by_label("秒数").fill("60")
        page.get_by_role("button", name="生成", exact=True).click()
        expect(page.locator("#stage canvas")).to_be_visible(timeout=PATIENCE)
    with serving(tmp_path, tiny_weights) as address:
        page.goto(address)
        expect(page.locator("#stage .status")).to_contain_text("已完成", timeout=PATIENCE)
    context.close()


def test_words_that_the_weights_hardly_know_are_named(page):
    """The server's answer is a stand-in: the weights of the tests are too small to know words."""
    asked = []

    def answer(route):
        asked.append(route.request.post_data_json)
        words = [word for word in ("dinosaur", "purple") if word in asked[-1]["prompt"]]
        route.fulfill(json={"words": words + ["w" * 200] * 9 * (len(asked[-1]["prompt"]) > 99)})

    page.route("**/api/words", answer)
    tell(page, "a purple dinosaur", "a red circle")
    note = card(page, 1).locator(".words")
    expect(note).to_have_text("The weights hardly know: dinosaur · purple")
    expect(note).to_have_attribute("aria-live", "polite")
    described = page.get_by_label("Prompt of scene 1").get_attribute("aria-describedby")
    assert described == note.get_attribute("id")
    expect(card(page, 2).locator(".words")).to_be_empty()
    page.get_by_label("Prompt of scene 1").fill("a purple circle")
    expect(note).to_have_text("The weights hardly know: purple")
    count = len(asked)
    page.get_by_label("Prompt of scene 1").press("Alt+ArrowDown")
    expect(card(page, 2).locator(".words")).to_have_text("The weights hardly know: purple")
    assert len(asked) == count, "cards that move ask nothing"
    page.get_by_role("button", name="中文").click()
    expect(page.locator(".scene .words").nth(1)).to_have_text("模型几乎不认识：purple")
    page.get_by_role("button", name="English").click()
    page.get_by_label("Prompt of scene 2").fill("a dinosaur " * 10)
    expect(card(page, 2).locator(".words")).to_contain_text("…")
    page.set_viewport_size({"width": 320, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    page.get_by_role("button", name="Edit a video").click()
    page.get_by_label("Prompt of the edit").fill("a dinosaur")
    expect(page.locator("#edit .words")).to_have_text("The weights hardly know: dinosaur")


def test_no_width_makes_the_page_scroll_sideways(page):
    tell(page, "a" * 300)
    for width in (320, 480, 900, 1280):
        page.set_viewport_size({"width": width, "height": 700})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
