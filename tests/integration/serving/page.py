"""The page in a headless browser, as a person uses it; Debian's chromium (`apt install chromium chromium-driver`)."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from axe_core_python.selenium import Axe
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
NEEDS_BROWSER = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromium-driver are not installed")
SWITCHES = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-proxy-server",
    "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
]  # fmt: skip


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

    def violations(self) -> list[str]:
        """What axe-core finds, by rule and element."""
        found = Axe().run(self.browser)["violations"]
        return [f"{one['id']}: {node['html'][:120]}" for one in found for node in one["nodes"]]

    def cut_off(self, *addresses: str) -> None:
        self.browser.execute_cdp_cmd("Network.enable", {})
        self.browser.execute_cdp_cmd("Network.setBlockedURLs", {"urls": list(addresses)})


@contextmanager
def started_browser(profile: Path) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for switch in [*SWITCHES, f"--user-data-dir={profile}"]:
        options.add_argument(switch)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=str(DRIVER)))
    yield browser
    browser.quit()
