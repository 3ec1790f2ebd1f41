"""That everybody can use the page at `/`: contrast, names, keyboard, narrow windows, no network but the service's."""

from pathlib import Path

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.integration.serving.page import NEEDS_BROWSER, Page

pytestmark = [pytest.mark.integration, NEEDS_BROWSER]

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
STICKING_OUT = """
for (const cell of document.querySelectorAll("td.number")) if (cell.textContent) cell.textContent = "<0.001"; // the widest
const range = document.createRange();
return [...document.querySelectorAll(".bars :is(th, td)")].filter((cell) => {
  range.selectNodeContents(cell);
  return range.getBoundingClientRect().right > cell.closest(".said").getBoundingClientRect().right;
}).map((cell) => cell.textContent);
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


@pytest.mark.parametrize("width", [320, 1280])
def test_nothing_sticks_out_or_keeps_people_out(page: Page, files: dict[str, Path], width: int) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page.name("cat\na very long class name that goes on and on\n" + "unbroken" * 12)
    page.choose(files["one.png"])
    page.part("compare").click()
    assert page.classify() == "Done."
    assert page.browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert page.violations() == []
    assert page.browser.execute_script(STICKING_OUT) == []
    page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
