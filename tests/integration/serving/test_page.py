"""What the page at `/` answers, in a real browser: questions, answers, camera, package, mistakes."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from serving.client import ServingClient
from tests.integration.serving.page import NEEDS_BROWSER, Page

pytestmark = [pytest.mark.integration, NEEDS_BROWSER]
NAMES = ["cat", "dog", "a red bicycle"]


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
