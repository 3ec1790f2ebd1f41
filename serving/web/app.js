// The page: names and pictures in, a task and its answers out.  It uses the public HTTP interface and nothing else.

const TOP_K = 5;
const PICTURES_PER_CALL = 8;
const BYTES_PER_CALL = 16 * 2 ** 20; // half of what the service takes by default; photos of a phone have up to 8 MB each
const ANSWER_WITHIN_MS = 310_000; // a little longer than the service gives itself
const LOW_MATCH = 0.05; // below this for every class, "none of these" is the likelier answer
const TYPES = ["image/jpeg", "image/png", "image/webp"];

const $ = (id) => document.getElementById(id);
let pictures = []; // {file, url}
let busy = false;

function labels() {
  const text = $("labels").value.trim(); // a line end behind the last name does not make lines of it
  const parts = text.includes("\n") ? text.split("\n") : text.split(",");
  return parts.map((part) => part.trim()).filter(Boolean);
}

function showCount() {
  const names = labels();
  const repeated = names.length - new Set(names).size;
  const count = names.length === 1 ? "1 class" : `${names.length} classes`;
  $("count").textContent = names.length === 0 ? "none yet" : repeated ? `${count}, ${repeated} repeated` : count;
}

const counted = (number, noun) => (number === 1 ? `1 ${noun}` : `${number} ${noun}s`);

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// ---- pictures -------------------------------------------------------------------------------------------------------

function addPictures(files) {
  const added = [...files];
  const readable = added.filter((file) => TYPES.includes(file.type) || file.type === ""); // the service looks at the bytes
  pictures.push(...readable.map((file) => ({ file, url: URL.createObjectURL(file) })));
  $("pictures").value = ""; // or the same file could not be chosen again
  showPictures();
  const others = added.filter((file) => !readable.includes(file)).map((file) => file.name);
  say(others.length ? `Not added, as only JPEG, PNG and WebP are read: ${others.join(", ")}.` : "", true);
}

function removePictures(removed) {
  pictures = pictures.filter((picture) => !removed.includes(picture)); // results may still show them: their addresses stay valid
  showPictures();
}

function showPictures() {
  const items = pictures.map((picture) => {
    const name = picture.file.name;
    const button = element("button", { type: "button", title: `Remove ${name}` }, element("img", { src: picture.url, alt: `Remove ${name}` }));
    button.addEventListener("click", () => {
      removePictures([picture]);
      $("pictures").focus();
    });
    return element("li", {}, button);
  });
  $("thumbnails").replaceChildren(...items);
  $("clear").hidden = pictures.length === 0;
  $("chosen").textContent = pictures.length === 0 ? "none yet" : counted(pictures.length, "picture");
}

// ---- calls ----------------------------------------------------------------------------------------------------------

async function call(path, options) {
  let response;
  try {
    response = await fetch(path, { ...options, signal: AbortSignal.timeout(ANSWER_WITHIN_MS) });
  } catch {
    throw new Error("The service cannot be reached. Check that it is running, and try again.");
  }
  const body = await response.json().catch(() => null); // a proxy's page, or a connection that broke in the middle
  if (!response.ok) throw new Error(body?.detail ?? `The service answered ${response.status}.`);
  if (body === null) throw new Error("The answer broke off. Try again.");
  return body;
}

function createTask(names) {
  return call("/v1/tasks", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ labels: names }),
  });
}

function parts(chosen) {
  const made = [];
  let bytes = 0;
  for (const picture of chosen) {
    bytes += picture.file.size;
    if (made.length === 0 || made.at(-1).length === PICTURES_PER_CALL || bytes > BYTES_PER_CALL) {
      made.push([]);
      bytes = picture.file.size;
    }
    made.at(-1).push(picture);
  }
  return made;
}

async function classify(taskId, chosen, parameters, topK) {
  const results = [];
  const failures = [];
  let milliseconds = 0;
  const calls = parts(chosen);
  for (const part of calls) {
    const form = new FormData();
    for (const { file } of part) form.append("images", file);
    try {
      const path = `/v1/tasks/${taskId}/classify?top_k=${topK}&parameters=${parameters}`;
      const answer = await call(path, { method: "POST", body: form });
      results.push(...answer.results);
      milliseconds += answer.timings_ms.total;
    } catch (error) {
      results.push(...part.map(() => ({ problem: { detail: error.message } }))); // the other parts may still work
      failures.push(error);
    }
  }
  if (failures.length === calls.length) throw failures[0];
  return { results, milliseconds };
}

// ---- answers --------------------------------------------------------------------------------------------------------

const percent = (value) => `${(value * 100).toFixed(1)} %`;
const match = (value) => (value > 0 && value < 0.001 ? "<0.001" : value.toFixed(3));

function bar(value, kind) {
  const fill = element("span", { className: `fill ${kind}` });
  fill.style.width = `${value * 100}%`;
  return element("span", { className: "track" }, fill);
}

function table(predictions, neutral) {
  const rows = predictions.map(({ label, score, match: matched }) => {
    const cell = element("td", { className: "bar", ariaHidden: "true" }, bar(score, ""));
    const row = element("tr", {}, element("th", { scope: "row", textContent: label, title: label }), cell);
    row.style.setProperty("--share", `${score * 100}%`); // drawn behind the row where there is no room for the bar
    row.append(element("td", { textContent: percent(score) }));
    if (neutral) {
      const before = neutral.get(label);
      cell.append(bar(before ?? 0, "second"));
      row.append(element("td", { textContent: before === undefined ? "–" : percent(before) }));
    }
    row.append(element("td", { textContent: match(matched) }));
    return row;
  });
  const heads = [["Class", ""], ["", ""], ["Score", "number"], ...(neutral ? [["Before", "number"]] : []), ["Match", "number"]];
  const head = heads.map(([textContent, className]) =>
    textContent ? element("th", { scope: "col", textContent, className }) : element("td", { ariaHidden: "true" }));
  return element("table", { className: "bars" },
    element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
}

function answer({ file, url }, result, neutral) {
  const body = element("div", {}, element("h2", { textContent: file.name, title: file.name }));
  if (result.predictions) {
    if (Math.max(...result.predictions.map((found) => found.match)) < LOW_MATCH) {
      body.append(element("p", { className: "hint", textContent: "Perhaps none of these: no class matches this picture well by itself." }));
    }
    const before = neutral?.predictions ? new Map(neutral.predictions.map((found) => [found.label, found.score])) : null;
    body.append(table(result.predictions, before));
    if (before) {
      body.append(element("p", { className: "legend" }, element("span", { textContent: "specialized" }),
        element("span", { className: "second", textContent: "before specialization" })));
    }
  } else {
    body.append(element("p", { className: "problem", textContent: result.problem?.detail ?? "No answer." }));
  }
  const image = element("img", { src: url, alt: "" });
  image.addEventListener("error", () => image.replaceWith(element("span", { className: "unreadable" })));
  return element("article", { className: "answer card" }, image, body);
}

// ---- details --------------------------------------------------------------------------------------------------------

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function curlCommands(task, names) {
  return [
    `curl -s ${location.origin}/v1/tasks -H 'content-type: application/json' \\`,
    `  -d ${quoted(JSON.stringify({ labels: names }))}`,
    `curl -s '${location.origin}/v1/tasks/${task.task_id}/classify?top_k=${TOP_K}' \\`,
    "  -H 'content-type: image/jpeg' --data-binary @picture.jpg",
  ].join("\n");
}

function showDetails(task, names, looked, count) {
  $("task").textContent = task.task_id;
  $("version").textContent = task.model_version;
  const { total } = task.timings_ms;
  $("made").textContent = task.cached ? `${total.toFixed(1)} ms (it was there already)` : `${total.toFixed(1)} ms`;
  $("looked").textContent = `${looked.toFixed(1)} ms for ${counted(count, "picture")}`;
  $("curl").textContent = curlCommands(task, names);
  $("export").href = `/v1/tasks/${task.task_id}/export`;
  $("details").hidden = false;
}

async function copyCommand() {
  try {
    await navigator.clipboard.writeText($("curl").textContent);
    $("copy").textContent = "Copied";
  } catch { // no clipboard outside secure contexts: select the text instead
    getSelection().selectAllChildren($("curl"));
    $("copy").textContent = "Selected";
  }
}

// ---- the form -------------------------------------------------------------------------------------------------------

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

// Not `disabled`: a disabled button loses the focus of who presses it by keyboard.
function setBusy(now) {
  busy = now;
  $("go").setAttribute("aria-disabled", String(now));
  $("results").setAttribute("aria-busy", String(now));
}

async function submit(event) {
  event.preventDefault();
  if (busy) return;
  const names = labels();
  if (names.length === 0) {
    say("Name at least one class.", true);
    $("labels").focus();
    return;
  }
  if (pictures.length === 0) {
    say("Choose at least one picture.", true);
    $("pictures").focus();
    return;
  }
  setBusy(true);
  $("copy").textContent = "Copy";
  $("results").classList.add("old"); // what is shown belongs to the question before this one
  try {
    say("Making the classifier …");
    const task = await createTask(names);
    say("Looking at the pictures …");
    const chosen = [...pictures];
    const { results, milliseconds } = await classify(task.task_id, chosen, "specialized", TOP_K);
    const all = Math.min(names.length, 1000);
    const neutral = $("compare").checked ? (await classify(task.task_id, chosen, "neutral", all)).results : [];
    $("empty").hidden = true;
    $("answers").replaceChildren(...chosen.map((picture, place) => answer(picture, results[place], neutral[place])));
    showDetails(task, names, milliseconds, chosen.length);
    $("results").classList.remove("old");
    const failed = results.filter((result) => result.problem).length;
    say(failed ? `${failed} of ${counted(chosen.length, "picture")} got no scores; the reason stands beside each.` : "Done.", failed > 0);
  } catch (error) {
    say(error.message, true);
  } finally {
    setBusy(false);
  }
}

$("form").addEventListener("submit", submit);
$("labels").addEventListener("input", showCount);
$("labels").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
});
$("pictures").addEventListener("change", (event) => addPictures(event.target.files));
$("clear").addEventListener("click", () => {
  removePictures(pictures);
  $("pictures").focus();
});
$("copy").addEventListener("click", copyCommand);
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) addPictures(event.clipboardData.files);
});
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault(); // a picture that misses the box must not replace the page
    $("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") addPictures(event.dataTransfer.files);
  });
}

showCount();
call("/v1/models")
  .then(({ models }) => {
    $("model").textContent = models.map((model) => `${model.name}, version ${model.version} (${model.architecture})`).join("; ");
  })
  .catch((error) => say(error.message, true));
