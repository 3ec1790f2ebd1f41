"""The page at `/` in a real browser: Debian's chromium, where it is installed (`apt install chromium chromium-driver`)."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from serving.client import ServingClient
from tests.unit.serving_helpers import picture

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromium-driver are not installed"),
]
SWITCHES = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-proxy-server",
    "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
]  # fmt: skip
NAMES = ["cat", "dog", "a red bicycle"]


class Page:
    """What a person does with the page, and what they see."""

    def __init__(self, browser: webdriver.Chrome, url: str) -> None:
        self.browser = browser
        browser.get(url)

    def part(self, name: str) -> WebElement:
        return self.browser.find_element(By.ID, name)

    def name(self, text: str) -> None:
        self.part("labels").clear()
        self.part("labels").send_keys(text)

    def choose(self, *paths: Path) -> None:
        self.part("pictures").send_keys("\n".join(map(str, paths)))

    def classify(self) -> str:
        """Press the button; what the page says once it has an answer."""
        self.part("go").click()
        return self.answered()

    def answered(self) -> str:
        def settled(_: webdriver.Chrome) -> str:
            said = self.part("status").text
            return said if self.part("go").get_attribute("aria-disabled") != "true" and not said.endswith("…") else ""

        return WebDriverWait(self.browser, 30).until(settled)

    def answers(self) -> list[list[list[str]]]:
        """Cells of each row, for each picture."""
        return [
            [
                [cell.text for cell in row.find_elements(By.CSS_SELECTOR, "th, td")]
                for row in table.find_elements(By.CSS_SELECTOR, "tbody tr:not(.none)")
            ]
            for table in self.browser.find_elements(By.CSS_SELECTOR, ".answer table")
        ]

    def focus(self) -> str:
        return str(self.browser.execute_script("return document.activeElement.id"))

    def cut_off(self, *addresses: str) -> None:
        self.browser.execute_cdp_cmd("Network.enable", {})
        self.browser.execute_cdp_cmd("Network.setBlockedURLs", {"urls": list(addresses)})


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for switch in [*SWITCHES, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(switch)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=str(DRIVER)))
    yield browser
    browser.quit()


@pytest.fixture
def page(browser: webdriver.Chrome, base_url: str) -> Page:
    return Page(browser, base_url)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pictures")
    contents = {"one.png": picture(1), "two.jpg": picture(2, kind="JPEG"), "not.png": b"just text", "notes.txt": b"just text"}
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return {name: folder / name for name in contents}


def test_names_and_pictures_become_the_scores_of_the_service(page: Page, files: dict[str, Path], client: ServingClient) -> None:
    page.name("\n".join(NAMES))
    page.choose(files["one.png"], files["two.jpg"])
    assert (page.part("count").text, page.part("chosen").text) == ("3 classes", "2 pictures")
    assert page.classify() == "Done."
    answer = client.classify_at_once(NAMES, [files["one.png"].read_bytes(), files["two.jpg"].read_bytes()])
    expected = [[[p.label, f"{p.score * 100:.1f} %"] for p in result.predictions or ()] for result in answer.results]
    assert [[row[:2] for row in table] for table in page.answers()] == expected
    assert page.part("task").text == answer.task_id
    assert answer.task_id in page.part("curl").text
    assert [
        entry for entry in page.browser.get_log("browser") if entry["level"] == "SEVERE"
    ] == []  # the page's own policy, for one


def test_the_comparison_shows_the_neutral_scores(page: Page, files: dict[str, Path], client: ServingClient) -> None:
    page.name(", ".join(NAMES))  # on one line, with commas
    page.choose(files["one.png"])
    page.part("compare").click()
    assert page.classify() == "Done."
    task = client.create_task(NAMES).task_id
    (result,) = client.classify(task, [files["one.png"].read_bytes()], parameters="neutral").results
    neutral = {found.label: f"{found.score * 100:.1f} %" for found in result.predictions or ()}
    assert {row[0]: row[2] for row in page.answers()[0]} == neutral


def test_none_of_these_stands_below_the_classes(
    page: Page, files: dict[str, Path], folder: Path, client: ServingClient
) -> None:
    page.name("\n".join(NAMES))
    page.choose(files["one.png"])
    assert page.classify() == "Done."
    rows = page.browser.find_elements(By.CSS_SELECTOR, ".answer tr.none")
    (result,) = client.classify_at_once(NAMES, [files["one.png"].read_bytes()]).results
    if result.none_of_these is None:
        assert rows == []
    else:
        assert rows[0].text.split("\n")[0].startswith(f"none of these {result.none_of_these * 100:.1f} %")


def test_templates_are_part_of_the_question(page: Page, files: dict[str, Path], client: ServingClient) -> None:
    page.name("\n".join(NAMES))
    page.choose(files["one.png"])
    page.part("templates").find_element(By.TAG_NAME, "summary").click()
    page.browser.find_element(By.CSS_SELECTOR, '#template-choices input[value="a photo of a {}"]').click()
    page.part("own-templates").send_keys("a painting of a {}")
    assert page.part("templates-chosen").text == "2 texts"
    assert page.classify() == "Done."
    templates = ["a photo of a {}", "a painting of a {}"]
    assert page.part("task").text == client.create_task(NAMES, templates=templates).task_id
    assert '"templates":["a photo of a {}","a painting of a {}"]' in page.part("curl").text
    page.part("own-templates").clear()
    page.part("own-templates").send_keys("without a place for the name")
    assert "must hold {} once" in page.classify()


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("cat, dog ,horse", ["cat", "dog", "horse"]),
        ("cat\n\n dog, big \r\nhorse", ["cat", "dog, big", "horse"]),
        ('"dog, big","cat ""tom"" "', ["dog, big", 'cat "tom"']),
        ("cat\tdog\nhorse\tcow", ["cat", "dog", "horse", "cow"]),
        ("", []),
    ],
)
def test_names_are_read_as_they_are_typed_or_pasted(page: Page, typed: str, names: list[str]) -> None:
    found = page.browser.execute_async_script(
        "const [text, done] = arguments; import('/names.js').then((names) => done(names.namesIn(text)));", typed
    )
    assert found == names


def test_lines_with_commas_are_split_when_asked_to(page: Page) -> None:
    page.name("cat,dog\nhorse,cow")
    assert page.part("count").text == "2 classes"
    page.part("split").click()
    assert (page.part("count").text, page.part("labels").get_attribute("value")) == ("4 classes", "cat\ndog\nhorse\ncow")
    assert not page.part("split").is_displayed() and page.focus() == "labels"


def test_a_picture_from_the_camera_is_classified(page: Page) -> None:
    page.name("cat\ndog")
    page.part("camera").click()
    WebDriverWait(page.browser, 20).until(lambda _: page.browser.execute_script("return video.videoWidth > 0"))
    assert page.part("camera").get_attribute("aria-expanded") == "true" and page.focus() == "shoot"
    page.part("shoot").click()
    WebDriverWait(page.browser, 20).until(lambda _: page.part("chosen").text == "1 picture")
    page.part("camera-off").click()
    assert page.focus() == "camera" and page.browser.execute_script("return video.srcObject") is None
    assert page.classify() == "Done."
    assert page.browser.find_element(By.CSS_SELECTOR, ".answer h2").text == "camera 1.jpg"


def test_a_camera_that_may_not_be_used_is_said(page: Page) -> None:
    page.browser.execute_script(
        "navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('no', 'NotAllowedError'))"
    )
    page.part("camera").click()
    WebDriverWait(page.browser, 20).until(lambda _: "camera is not allowed" in page.part("status").text)
    assert not page.part("camera-panel").is_displayed()


def test_the_package_is_downloaded(page: Page, files: dict[str, Path], tmp_path: Path) -> None:
    page.browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    page.name("cat\ndog")
    page.choose(files["one.png"])
    assert page.classify() == "Done."
    page.part("export").click()
    WebDriverWait(page.browser, 120).until(lambda _: not page.part("status").text.endswith("…"))
    assert page.part("status").text == "The package is with your downloads."
    WebDriverWait(page.browser, 20).until(lambda _: [path.suffix for path in tmp_path.iterdir()] == [".zip"])
    (package,) = tmp_path.iterdir()
    assert "model.onnx" in zipfile.ZipFile(package).namelist()


def test_a_key_is_asked_for_where_the_service_wants_one(page: Page, files: dict[str, Path]) -> None:
    assert not page.part("key-field").is_displayed()
    page.browser.execute_script(
        """const real = window.fetch;
        window.fetch = (path, options) => options.headers.authorization === "Bearer secret" ? real(path, options)
          : Promise.resolve(new Response('{"detail": "no"}', {status: 401}));"""
    )
    page.name("cat\ndog")
    page.choose(files["one.png"])
    assert page.classify() == "This service wants an API key."
    assert page.focus() == "key"
    page.part("key").send_keys("wrong")
    assert page.classify() == "The service does not know this API key."
    page.part("key").clear()
    page.part("key").send_keys("secret")
    assert page.classify() == "Done."
    assert "secret" not in page.part("curl").text + page.part("python").text
    assert "$HYPERCLIP_API_KEY" in page.part("curl").text and "HYPERCLIP_API_KEY" in page.part("python").text
    page.browser.execute_script("sessionStorage.clear()")


def test_the_python_call_that_is_shown_works(page: Page, files: dict[str, Path], tmp_path: Path) -> None:
    page.name('a "quoted" cat\ndog')
    page.choose(files["two.jpg"])
    assert page.classify() == "Done."
    (tmp_path / "picture.jpg").write_bytes(files["two.jpg"].read_bytes())
    code = str(page.part("python").get_attribute("textContent"))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert {line.rpartition(" ")[0].rpartition(" ")[0] for line in run.stdout.splitlines()[:2]} == {'a "quoted" cat', "dog"}


def test_looking_can_be_stopped(page: Page, files: dict[str, Path]) -> None:
    page.name("cat\ndog")
    page.choose(files["one.png"])
    page.browser.execute_script(
        """const real = window.fetch;
        window.fetch = (path, options) => path.includes("classify")
          ? new Promise((_, fail) => options.signal.addEventListener("abort", () => fail(new DOMException("", "AbortError"))))
          : real(path, options);"""
    )
    page.part("go").click()
    WebDriverWait(page.browser, 30).until(lambda _: page.part("status").text.startswith("Looking"))
    page.part("stop").click()
    assert page.answered() == "Stopped."
    assert not page.part("stop").is_displayed() and page.focus() == "go"


CONTRAST = """
const channel = (value) => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
const colour = (text) => text.match(/[\\d.]+/g).map(Number);
function ground(element) {
  for (let at = element; at; at = at.parentElement) {
    const found = colour(getComputedStyle(at).backgroundColor);
    if (found.length < 4 || found[3] > 0) return found;
  }
  return [255, 255, 255];
}
const weak = [];
for (const element of document.querySelectorAll("body *")) {
  const text = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim());
  if (!text || !element.checkVisibility() || element.closest("[aria-disabled=true]")) continue;
  const [one, other] = [light(colour(getComputedStyle(element).color)), light(ground(element))].sort((a, b) => b - a);
  const ratio = (one + 0.05) / (other + 0.05);
  if (ratio < 4.5) weak.push(`${element.tagName} ${element.textContent.trim().slice(0, 30)} ${ratio.toFixed(2)}`);
}
return weak;
"""
NAMELESS = """
const named = (control) => (control.labels?.length || control.ariaLabel || control.textContent.trim()
  || control.querySelector("img[alt]:not([alt=''])") || control.getAttribute("aria-labelledby"));
return [...document.querySelectorAll("input, textarea, button, a, video, [role=region], section, article")]
  .filter((control) => !named(control)).map((control) => control.outerHTML.slice(0, 80));
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read_and_has_a_name(page: Page, files: dict[str, Path], scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion", "value": "reduce"}]
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    page.name("cat\ndog")
    page.choose(files["one.png"], files["not.png"])
    page.part("compare").click()
    page.part("templates").find_element(By.TAG_NAME, "summary").click()
    page.classify()
    assert page.browser.execute_script(CONTRAST) == []
    assert page.browser.execute_script(NAMELESS) == []
    assert page.browser.execute_script("return document.querySelectorAll('[id]').length") == page.browser.execute_script(
        "return new Set([...document.querySelectorAll('[id]')].map((one) => one.id)).size"
    )
    assert page.browser.execute_script("return document.getAnimations().length") == 0
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_nothing_is_asked_of_anybody_else(page: Page) -> None:
    asked = page.browser.execute_script("return performance.getEntriesByType('resource').map((one) => new URL(one.name).host)")
    assert set(asked) == {page.browser.execute_script("return location.host")}


def test_the_keyboard_is_enough(page: Page, files: dict[str, Path]) -> None:
    assert page.focus() == "labels"
    ActionChains(page.browser).send_keys("cat\ndog", Keys.TAB).perform()
    assert page.browser.execute_script("return document.activeElement.tagName") == "SUMMARY"  # of the templates
    ActionChains(page.browser).send_keys(Keys.TAB).perform()
    assert page.focus() == "pictures"
    page.choose(files["one.png"])  # the dialog that Enter would open is the browser's own
    for name in ("camera", "clear"):
        ActionChains(page.browser).send_keys(Keys.TAB).perform()
        assert page.focus() == name
    page.part("go").send_keys(Keys.ENTER)
    assert page.answered() == "Done."
    assert page.focus() == "go"  # kept, for the next question
    page.part("labels").send_keys("\nhorse", Keys.CONTROL, Keys.ENTER)
    assert page.answered() == "Done."
    assert {row[0] for row in page.answers()[0]} == {"cat", "dog", "horse"}


def test_mistakes_are_named_where_they_are_made(page: Page, files: dict[str, Path]) -> None:
    assert page.classify() == "Name at least one class."
    page.name("cat\ndog\n cat ")
    assert page.part("count").text == "3 classes, 1 repeated"
    assert page.classify() == "Choose at least one picture."
    page.choose(files["one.png"], files["notes.txt"])
    assert page.part("status").text == "Not added, as only JPEG, PNG and WebP are read: notes.txt."
    assert "'cat' is there twice" in page.classify()
    page.name("cat, dog\n")
    assert page.part("count").text == "2 classes"
    page.choose(files["not.png"])
    assert page.classify() == "1 of 2 pictures got no scores; the reason stands beside each."
    assert len(page.answers()) == 1
    assert "no JPEG, PNG or WebP" in page.browser.find_element(By.CSS_SELECTOR, ".answer .problem").text
    page.browser.find_elements(By.CSS_SELECTOR, "#thumbnails button")[1].click()
    assert page.part("chosen").text == "1 picture"


def test_a_broken_connection_is_said_and_the_page_can_go_on(page: Page, files: dict[str, Path]) -> None:
    page.name("cat\ndog")
    page.choose(files["one.png"])
    assert page.classify() == "Done."
    page.cut_off("*/classify*")  # the task is made, then the connection breaks
    assert page.classify().startswith("The service cannot be reached.")
    assert "old" in str(page.part("results").get_attribute("class"))  # and the answers before are not passed off as new
    page.cut_off()
    assert page.classify() == "Done."
    assert "old" not in str(page.part("results").get_attribute("class"))


@pytest.mark.parametrize("width", [320, 1280])
def test_nothing_sticks_out_at_the_side(page: Page, files: dict[str, Path], width: int) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page.name("cat\na very long class name that goes on and on\n" + "unbroken" * 12)
    page.choose(files["one.png"])
    page.part("compare").click()
    assert page.classify() == "Done."
    assert page.browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
