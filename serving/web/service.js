// Calls of the public HTTP interface.

import { $ } from "./page.js";

const PICTURES_PER_CALL = 64;
const BYTES_PER_CALL = 16 * 2 ** 20; // half of what the service takes in a plain call by default
const ANSWER_WITHIN_MS = 310_000; // a little longer than the service gives itself
const KEY = "hyperclip-key";
const NDJSON = "application/x-ndjson";

export const apiKey = () => $("key").value.trim();

// The focus goes there when the field appears; later only `submit` moves it: who corrects a key may be typing names already.
function askForKey() {
  const appears = $("key-field").hidden;
  $("key-field").hidden = false;
  if (appears) $("key").focus();
}

async function respond(path, { headers = {}, signal, ...options } = {}) {
  const key = apiKey();
  const signals = [AbortSignal.timeout(ANSWER_WITHIN_MS), ...(signal ? [signal] : [])];
  let response;
  try {
    response = await fetch(path, {
      ...options,
      headers: key ? { ...headers, authorization: `Bearer ${key}` } : headers,
      signal: AbortSignal.any(signals),
    });
  } catch {
    if (signal?.aborted) throw new Error("Stopped.");
    throw new Error("The service cannot be reached. Check that it is running, and try again.");
  }
  if (response.ok) {
    if (key) keep(key);
    return response;
  }
  const body = await response.json().catch(() => null); // a proxy's page, or a connection that broke in the middle
  if (response.status === 401) {
    askForKey();
    const fault = key ? "The service does not know this API key." : "This service wants an API key.";
    throw Object.assign(new Error(fault), { field: "key" });
  }
  throw new Error(body?.detail ?? `The service answered ${response.status}.`);
}

export async function call(path, options) {
  const body = await (await respond(path, options)).json().catch(() => null);
  if (body === null) throw new Error("The answer broke off. Try again.");
  return body;
}

export async function download(path) {
  return (await respond(path)).blob();
}

// Yields {place, ...line} for each picture as it becomes ready.
export async function* classify(taskId, pictures, { parameters, topK, signal }) {
  let first = 0;
  for (const part of parts(pictures)) {
    const form = new FormData();
    for (const { file } of part) form.append("images", file);
    const path = `/v1/tasks/${taskId}/classify?top_k=${topK}&parameters=${parameters}`;
    const answered = new Set();
    try {
      const response = await respond(path, { method: "POST", body: form, headers: { accept: NDJSON }, signal });
      for await (const line of lines(response, signal)) {
        answered.add(line.index);
        yield { ...line, place: first + line.index };
      }
    } catch (error) {
      if (signal?.aborted || answered.size + first === 0) throw error; // nothing works: say it once
      for (const [index] of part.entries()) { // the other parts may still work
        if (!answered.has(index)) yield { place: first + index, problem: { detail: error.message } };
      }
    }
    first += part.length;
  }
}

async function* lines(response, signal) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      const whole = (rest + (value ?? "")).split("\n");
      rest = whole.pop();
      for (const text of whole) {
        const line = JSON.parse(text);
        if (!line.end) yield line;
        else if (line.problem) throw new Error(line.problem.detail);
        else return;
      }
      if (done) throw new Error("The answer broke off. Try again.");
    }
  } catch (error) {
    if (signal?.aborted) throw new Error("Stopped.");
    throw error instanceof TypeError ? new Error("The connection broke off. Try again.") : error;
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parts(pictures) {
  const made = [];
  let bytes = 0;
  for (const picture of pictures) {
    bytes += picture.file.size;
    if (made.length === 0 || made.at(-1).length === PICTURES_PER_CALL || bytes > BYTES_PER_CALL) {
      made.push([]);
      bytes = picture.file.size;
    }
    made.at(-1).push(picture);
  }
  return made;
}

function keep(key) {
  try {
    sessionStorage.setItem(KEY, key); // until the tab is closed
  } catch { /* not allowed here: it is asked for again */ }
}

try {
  $("key").value = sessionStorage.getItem(KEY) ?? "";
} catch { /* not allowed here */ }
