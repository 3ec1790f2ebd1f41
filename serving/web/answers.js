// What is shown of each picture, and how to ask the same without the page.

import { $, counted, element } from "./page.js";
import { apiKey } from "./service.js";

export const TOP_K = 5;
const LIKELY = 0.5;

const percent = (value) => `${(value * 100).toFixed(1)} %`;
const match = (value) => (value > 0 && value < 0.001 ? "<0.001" : value.toFixed(3));

function scored(value, kind = "") {
  const fill = element("span", { className: `fill ${kind}` });
  fill.style.width = `${(value ?? 0) * 100}%`;
  const track = element("span", { className: "track", ariaHidden: "true" }, fill);
  return element("td", { className: "scored" }, element("span", { textContent: value === undefined ? "–" : percent(value) }), track);
}

function row(label, value, before, matched, kind = "") {
  const cells = [element("th", { scope: "row", textContent: label, title: label }), scored(value, kind)];
  if (before !== null) cells.push(scored(before, kind || "second"));
  cells.push(element("td", { className: "number", textContent: matched }));
  return element("tr", { className: kind }, ...cells);
}

function table(result, neutral) {
  const before = neutral && new Map(neutral.predictions.map((found) => [found.label, found.score]));
  const rows = result.predictions.map(({ label, score, match: matched }) => row(label, score, before && before.get(label), match(matched)));
  if (typeof result.none_of_these === "number") {
    rows.push(row("none of these", result.none_of_these, neutral && (neutral.none_of_these ?? undefined), "", "none"));
  }
  const heads = ["Class", neutral ? "Specialized" : "Score", ...(neutral ? ["Neutral"] : []), "Match"];
  const head = heads.map((textContent, place) => element("th", { scope: "col", textContent, className: place ? "number" : "" }));
  return element("table", { className: neutral ? "bars compared" : "bars" },
    element("caption", { className: "unseen", textContent: "Scores of the best classes" }),
    element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
}

// One card a picture, there from the start and filled in as answers come.
export class Answer {
  constructor({ file, url }) {
    this.body = element("div", { className: "said" }, element("p", { className: "quiet waiting", textContent: "…" }));
    const image = element("img", { src: url, alt: "" });
    image.addEventListener("error", () => image.replaceWith(element("span", { className: "unreadable" })));
    const title = element("h2", { textContent: file.name, title: file.name });
    this.card = element("article", { className: "answer card" }, image, title, this.body);
    this.card.setAttribute("aria-label", file.name);
  }

  show(result) {
    this.result = result;
    this.draw();
  }

  compare(neutral) {
    this.neutral = neutral;
    this.draw();
  }

  draw() {
    const { result, neutral } = this;
    if (!result.predictions) {
      this.body.replaceChildren(element("p", { className: "problem", textContent: result.problem?.detail ?? "No answer." }));
      return;
    }
    const shown = [table(result, neutral?.predictions ? neutral : null)];
    if (result.none_of_these > LIKELY) {
      shown.unshift(element("p", { className: "hint", textContent: "More likely none of these than any of them." }));
    }
    this.body.replaceChildren(...shown);
  }

  get failed() {
    return !this.result?.predictions;
  }

  giveUp() {
    if (!this.result) this.show({ problem: { detail: "Not looked at." } });
  }
}

// ---- details --------------------------------------------------------------------------------------------------------

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function curlCommands(taskId, asked) {
  const key = apiKey() ? ` -H "authorization: Bearer $HYPERCLIP_API_KEY"` : "";
  return [
    `curl -s ${location.origin}/v1/tasks${key} -H 'content-type: application/json' \\`,
    `  -d ${quoted(JSON.stringify(asked))}`,
    `curl -s '${location.origin}/v1/tasks/${taskId}/classify?top_k=${TOP_K}'${key} \\`,
    "  -H 'content-type: image/jpeg' --data-binary @picture.jpg",
  ].join("\n");
}

function pythonCall(asked) {
  const key = apiKey() ? `, api_key=os.environ["HYPERCLIP_API_KEY"]` : "";
  const templates = asked.templates ? `, templates=${JSON.stringify(asked.templates)}` : "";
  return [
    ...(key ? ["import os"] : []),
    "from pathlib import Path",
    "",
    "from serving.client import ServingClient",
    "",
    `with ServingClient(${JSON.stringify(location.origin)}${key}) as client:`,
    `    task = client.create_task(${JSON.stringify(asked.labels)}${templates})`,
    `    answer = client.classify(task.task_id, [Path("picture.jpg").read_bytes()], top_k=${TOP_K})`,
    "    for found in answer.results[0].predictions or ():",
    "        print(found.label, found.score, found.match)",
    "    print(answer.results[0].none_of_these)",
  ].join("\n");
}

export function showDetails(task, asked, { milliseconds, count }) {
  $("task").textContent = task.task_id;
  $("version").textContent = task.model_version;
  const { total } = task.timings_ms;
  $("made").textContent = task.cached ? `${total.toFixed(1)} ms (it was there already)` : `${total.toFixed(1)} ms`;
  $("looked").textContent = `${milliseconds.toFixed(0)} ms for ${counted(count, "picture")}`;
  $("curl").textContent = curlCommands(task.task_id, asked);
  $("python").textContent = pythonCall(asked);
  $("details").hidden = false;
}

async function copy(button) {
  const text = $(button.dataset.copies);
  try {
    await navigator.clipboard.writeText(text.textContent);
    button.textContent = "Copied";
  } catch { // no clipboard outside secure contexts: select the text instead
    getSelection().selectAllChildren(text);
    button.textContent = "Selected";
  }
}

const COPIES = [...document.querySelectorAll("[data-copies]")];
for (const button of COPIES) button.addEventListener("click", () => copy(button));

export function resetCopies() {
  for (const button of COPIES) button.textContent = "Copy";
}
