// Class names and templates: what is typed or pasted, as lists.

import { $, element } from "./page.js";

const COMMON = ["{}", "a photo of a {}", "a drawing of a {}", "an icon of a {}"];

// Fields of one line of a table; a quoted field may hold the separator, and "" stands for a quote.
function fields(line, separator) {
  const found = [""];
  let quoted = false;
  for (let place = 0; place < line.length; place++) {
    const character = line[place];
    if (quoted && character === '"' && line[place + 1] === '"') found[found.length - 1] += line[++place];
    else if (character === '"' && (quoted || found.at(-1).trim() === "")) quoted = !quoted;
    else if (character === separator && !quoted) found.push("");
    else found[found.length - 1] += character;
  }
  return found;
}

const clean = (parts) => parts.map((part) => part.trim()).filter(Boolean);

// One a line, where a comma belongs to the name; or one line with commas.  Tabs come from the cells of a table.
export function namesIn(text) {
  const lines = clean(text.split(/\r\n|\n|\r/));
  if (lines.length === 1 && !lines[0].includes("\t")) return clean(fields(lines[0], ","));
  return clean(lines.flatMap((line) => fields(line, line.includes("\t") ? "\t" : "\n")));
}

export function labels() {
  return namesIn($("labels").value);
}

// Several lines with commas may be names with commas or a table: whoever sees them says which.
function splitAtCommas() {
  const lines = $("labels").value.split(/\r\n|\n|\r/);
  $("labels").value = clean(lines.flatMap((line) => fields(line, ","))).join("\n");
  showCount();
  $("labels").focus();
}

export function showCount() {
  const names = labels();
  const repeated = names.length - new Set(names).size;
  const count = names.length === 1 ? "1 class" : `${names.length.toLocaleString("en")} classes`;
  $("count").textContent = names.length === 0 ? "none yet" : repeated ? `${count}, ${repeated} repeated` : count;
  $("split").hidden = names.length < 2 || !names.some((name) => name.includes(","));
}

// ---- templates ------------------------------------------------------------------------------------------------------

export function showTemplates(taught) {
  const choices = [...new Set([...taught, ...COMMON])].map((text) =>
    element("label", { className: "check" }, element("input", { type: "checkbox", value: text }), text === "{}" ? "{}, the name alone" : text));
  $("template-choices").replaceChildren(...choices);
}

// null: the model's own.
export function templates() {
  const chosen = [...$("template-choices").querySelectorAll("input:checked")].map((box) => box.value);
  const all = [...new Set([...chosen, ...clean($("own-templates").value.split("\n"))])];
  return all.length ? all : null;
}

function showChosenTemplates() {
  const chosen = templates();
  $("templates-chosen").textContent = chosen === null ? "as the model was taught" : chosen.length === 1 ? chosen[0] : `${chosen.length} texts`;
}

$("labels").addEventListener("input", showCount);
$("split").addEventListener("click", splitAtCommas);
$("templates").addEventListener("input", showChosenTemplates);
