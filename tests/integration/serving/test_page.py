"""The page at `/` in a real browser: Debian's chromium, where it is installed (`apt install chromium chromium-driver`)."""

import shutil
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
                [cell.text for cell in row.find_elements(By.CSS_SELECTOR, "th, td:not(.bar)")]
                for row in table.find_elements(By.CSS_SELECTOR, "tbody tr")
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
    assert str(page.part("export").get_attribute("href")).endswith(f"/v1/tasks/{answer.task_id}/export")
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


def test_the_keyboard_is_enough(page: Page, files: dict[str, Path]) -> None:
    assert page.focus() == "labels"
    ActionChains(page.browser).send_keys("cat\ndog", Keys.TAB).perform()
    assert page.focus() == "pictures"
    page.choose(files["one.png"])  # the dialog that Enter would open is the browser's own
    ActionChains(page.browser).send_keys(Keys.TAB).perform()
    assert page.focus() == "clear"
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
