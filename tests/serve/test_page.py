"""The page in a real browser, where Debian's chromium and its driver are installed.

With SCREENSHOTS=FOLDER the README's pictures are taken on the way.
"""

import base64
import io
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.serve.asking import HOSTS, Slow, run, until
from vljax.generate.chat import SAMPLE
from vljax.serve.app import Server

webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver")
PATIENCE = 120  # seconds; programs are compiled on the way

RECORD = """
window.seen = [];
new MutationObserver(() => {
  const last = document.querySelector("#turns li:last-child");
  if (last) window.seen.push(last.textContent);
}).observe(document.getElementById("turns"), {childList: true, subtree: true, characterData: true});
"""
DROP = """
const [data, name] = arguments;
const transfer = new DataTransfer();
transfer.items.add(new File([Uint8Array.from(atob(data), c => c.charCodeAt(0))], name));
for (const kind of ["dragover", "drop"]) {
  document.body.dispatchEvent(new DragEvent(kind, {dataTransfer: transfer, bubbles: true}));
}
"""


class Page:
    """What someone does on it, and sees."""

    def __init__(self, driver, url):
        self.driver = driver
        driver.get(f"{url}/")
        assert until(lambda: self.text("model") == "tiny", PATIENCE)
        driver.execute_script(RECORD)

    def at(self, id):
        return self.driver.find_element("id", id)

    def all(self, css):
        return self.driver.find_elements("css selector", css)

    def text(self, id):
        return self.at(id).text

    def upload(self, path):
        self.at("file").send_keys(str(path))
        assert until(lambda: "busy" not in self.at("drop").get_attribute("class"), PATIENCE)

    def drawn(self, strip):
        """How many pictures of a strip have been loaded."""
        script = "return [...document.querySelectorAll(arguments[0])].map(i => i.naturalWidth)"
        return [w for w in self.driver.execute_script(script, f"#{strip} img") if w]

    def ask(self, question):
        count = len(self.all("#turns li"))
        self.at("question").send_keys(question + "\n")
        assert until(lambda: len(self.all("#turns li")) == count + 2, PATIENCE)

    def answer(self):
        assert until(lambda: not self.all("#turns li.writing"), PATIENCE)
        return self.all("#turns li")[-1].text

    def errors(self):
        """Of scripts, and of what the page may not load; refused requests are no fault of it."""
        log = self.driver.get_log("browser")
        return [e for e in log if e["level"] == "SEVERE" and e["source"] != "network"]

    def take(self, name):
        folder = os.environ.get("SCREENSHOTS")
        if folder:
            image = Image.open(io.BytesIO(self.driver.get_screenshot_as_png())).convert("RGB")
            image.quantize(128).save(Path(folder) / name, optimize=True)


@pytest.fixture(scope="module")
def driver():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    arguments = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
    for argument in [*arguments, "--window-size=1100,900", "--force-prefers-reduced-motion"]:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield made
    made.quit()


@pytest.fixture
def page(driver, running):
    made = Page(driver, running.url)
    yield made
    assert made.errors() == []


def test_a_clip_is_uploaded_seen_and_talked_about(page, tmp_path):
    page.upload(SAMPLE)
    assert page.text("about") == "sample.mp4, 4 s"
    assert until(lambda: page.drawn("frames") == [48] * 8 and page.drawn("sounds") == [96] * 8)
    assert [d.text for d in page.all("#frames div")] == [f"{i / 2:.1f} s" for i in range(8)]

    page.ask("What happens?")
    assert page.answer() == "A green car moves left."
    seen = page.driver.execute_script("return window.seen")
    assert {"A green", "A green car"} <= set(seen)  # it was told piece by piece
    page.ask("What do you hear?")
    assert page.answer() == "A drum."
    page.take("serve.png")

    page.at("anew").click()
    assert page.all("#turns li") == []
    page.at("listen").click()
    page.ask("What do you hear?")
    assert page.answer() == "I can't tell: there is no sound."
    page.at("listen").click()
    page.at("look").click()
    page.at("anew").click()
    page.ask("What do you hear?")
    assert page.answer() == "A drum."

    broken = tmp_path / "holiday.mp4"
    broken.write_bytes(SAMPLE.read_bytes()[:30_000])
    page.upload(broken)
    assert "holiday.mp4 is not a readable video" in page.text("problem")
    page.take("serve-broken.png")
    assert page.text("about") == "sample.mp4, 4 s"  # still there
    page.upload(SAMPLE)
    assert not page.at("problem").is_displayed()


def test_a_file_may_be_dropped_anywhere(page):
    made = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 30, 30)).save(made, "PNG")
    page.driver.execute_script(DROP, base64.b64encode(made.getvalue()).decode(), "<b>red.png")
    assert until(lambda: page.drawn("frames") == [48])
    assert page.text("about") == "<b>red.png" and not page.at("heard").is_displayed()
    page.driver.execute_script(DROP, base64.b64encode(b"<html></html>").decode(), "page.mp4")
    assert until(lambda: "page.mp4 is an HTML or XML page" in page.text("problem"))
    page.driver.execute_script("server.file_bytes = 10")
    page.driver.execute_script(DROP, base64.b64encode(bytes(11)).decode(), "large.mp4")
    assert until(lambda: "expected at most 10" in page.text("problem"))


def test_sampling_settings_are_asked_for_and_refused_where_wrong(page):
    page.at("question").send_keys("What is it?\n")
    wanted = page.answer()
    page.driver.execute_script("document.querySelector('details').open = true")
    for id, value in (("temperature", "1.5"), ("top_p", "1"), ("max_tokens", "9999")):
        page.at(id).clear()
        page.at(id).send_keys(value)
    page.at("question").send_keys("What is it?\n")
    assert until(lambda: page.all("#turns li.failed"), PATIENCE)
    assert "max_tokens: got 9999" in page.answer()
    assert page.at("question").get_attribute("value") == "What is it?"
    page.at("max_tokens").clear()
    page.at("max_tokens").send_keys("1")
    page.at("send").click()
    assert until(lambda: len(page.all("#turns li.assistant")) == 2, PATIENCE)
    assert page.answer() != wanted


def test_an_answer_may_be_stopped(driver, engine):
    runner = Slow()
    with run(Server(engine, "tiny", hosts=HOSTS, runner=runner)) as slow:
        page = Page(driver, slow.url)
        page.ask("What is it?")
        assert until(lambda: page.all("#turns li")[-1].text.startswith("word word"))
        page.at("stop").click()
        assert until(lambda: slow.server.batcher.taken == 0)
        assert page.answer().startswith("word word") and not page.at("stop").is_displayed()
        page.ask("And this?")
        page.at("anew").click()  # in the midst of it
        assert until(lambda: slow.server.batcher.taken == 0)
        assert page.all("#turns li") == [] and page.at("send").is_enabled()
        assert page.errors() == []
        runner.end = True
