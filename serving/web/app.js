// The page: names and pictures in, a task and its answers out.  It uses the public HTTP interface and nothing else.

import { Answer, TOP_K, resetCopies, showDetails } from "./answers.js";
import { labels, showCount, showTemplates, templates } from "./names.js";
import { $, counted, element, say } from "./page.js";
import { chosenPictures } from "./pictures.js";
import { call, classify, download } from "./service.js";

const MOST_LABELS = 1000; // that one answer may hold
let running = null; // an AbortController while there is something to stop
let made = null; // the task that is shown

// Not `disabled`: a disabled button loses the focus of who presses it by keyboard.
function setRunning(controller) {
  running = controller;
  $("go").setAttribute("aria-disabled", String(controller !== null));
  $("results").setAttribute("aria-busy", String(controller !== null));
  if (controller === null && document.activeElement === $("stop")) $("go").focus();
  $("stop").hidden = controller === null;
}

function missing(names, pictures) {
  if (names.length === 0) return ["Name at least one class.", "labels"];
  if (pictures.length === 0) return ["Choose at least one picture.", "pictures"];
  return null;
}

async function submit(event) {
  event.preventDefault();
  if (running) return;
  const names = labels();
  const pictures = chosenPictures();
  const fault = missing(names, pictures);
  if (fault) {
    say(fault[0], true);
    $(fault[1]).focus();
    return;
  }
  const chosen = templates();
  const asked = chosen ? { labels: names, templates: chosen } : { labels: names };
  setRunning(new AbortController());
  resetCopies();
  $("results").classList.add("old"); // what is shown belongs to the question before this one
  try {
    await ask(asked, pictures, running.signal);
  } catch (error) {
    say(error.message, true);
    if (error.field) $(error.field).focus();
  } finally {
    setRunning(null);
  }
}

async function ask(asked, pictures, signal) {
  say("Making the classifier …");
  const task = await call("/v1/tasks", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(asked),
    signal,
  });
  say(`Looking at ${counted(pictures.length, "picture")} …`);
  const answers = pictures.map((picture) => new Answer(picture));
  const started = performance.now();
  let count = 0;
  try {
    for await (const line of classify(task.task_id, pictures, { parameters: "specialized", topK: TOP_K, signal })) {
      if (count++ === 0) appear(answers, task);
      answers[line.place].show(line);
    }
    const milliseconds = performance.now() - started;
    showDetails(task, asked, { milliseconds, count });
    if ($("compare").checked) {
      say("Comparing …");
      const topK = Math.min(asked.labels.length, MOST_LABELS);
      for await (const line of classify(task.task_id, pictures, { parameters: "neutral", topK, signal })) {
        answers[line.place].compare(line);
      }
    }
  } finally {
    if (count) for (const answer of answers) answer.giveUp();
  }
  const failed = answers.filter((answer) => answer.failed).length;
  if (failed === answers.length && failed === 1) throw new Error(answers[0].result.problem?.detail ?? "No answer.");
  say(failed ? `${failed} of ${counted(pictures.length, "picture")} got no scores; the reason stands beside each.` : "Done.", failed > 0);
}

function appear(answers, task) {
  made = task;
  $("empty").hidden = true;
  $("legend").hidden = false;
  $("details").hidden = true;
  $("answers").replaceChildren(...answers.map((answer) => answer.card));
  $("results").classList.remove("old");
}

async function saveExport() {
  const button = $("export");
  if (button.getAttribute("aria-disabled") === "true") return;
  button.setAttribute("aria-disabled", "true");
  say("Making the package …");
  try {
    const url = URL.createObjectURL(await download(`/v1/tasks/${made.task_id}/export`));
    element("a", { href: url, download: `hyperclip-${made.task_id.slice(0, 12)}.zip` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
    say("The package is with your downloads.");
  } catch (error) {
    say(error.message, true);
  } finally {
    button.setAttribute("aria-disabled", "false");
  }
}

async function showModels() {
  try {
    const { models } = await call("/v1/models");
    $("model").textContent = models.map((model) => `${model.name}, version ${model.version} (${model.architecture})`).join("; ");
    $("note").textContent = models[0]?.note ?? "";
    $("note").hidden = !models[0]?.note;
    showTemplates(models[0]?.templates ?? []);
  } catch (error) {
    showTemplates([]);
    say(error.message, true);
  }
}

$("form").addEventListener("submit", submit);
$("stop").addEventListener("click", () => running?.abort());
$("export").addEventListener("click", saveExport);
$("key").addEventListener("change", showModels);
$("labels").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
});
showCount();
showModels();
