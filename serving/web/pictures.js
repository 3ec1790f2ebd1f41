// The chosen pictures: from files, dropped, pasted, or from the camera.

import { $, counted, element, say } from "./page.js";

const TYPES = ["image/jpeg", "image/png", "image/webp"];
const QUALITY = 0.92;

let pictures = []; // {file, url}
let stream = null;
let shots = 0;

export const chosenPictures = () => [...pictures];

export function addPictures(files) {
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

// ---- camera ---------------------------------------------------------------------------------------------------------

const REASONS = {
  NotAllowedError: "The camera is not allowed here; the browser asks beside the address of the page.",
  NotFoundError: "There is no camera.",
  NotReadableError: "The camera is in use by another program.",
};

async function openCamera() {
  if (stream) return closeCamera();
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    say(REASONS[error.name] ?? `The camera cannot be opened (${error.name}).`, true);
    return;
  }
  stream.getVideoTracks()[0].addEventListener("ended", closeCamera); // unplugged, or forbidden meanwhile
  $("video").srcObject = stream;
  $("camera-panel").hidden = false;
  $("camera").setAttribute("aria-expanded", "true");
  $("shoot").focus();
  say("The camera is on.");
}

function closeCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  $("video").srcObject = null;
  $("camera-panel").hidden = true;
  $("camera").setAttribute("aria-expanded", "false");
  $("camera").focus();
}

async function shoot() {
  const video = $("video");
  if (!video.videoWidth) {
    say("The camera shows nothing yet; try again.", true);
    return;
  }
  const canvas = element("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", QUALITY));
  addPictures([new File([blob], `camera ${++shots}.jpg`, { type: "image/jpeg" })]);
  say(`Picture ${shots} taken.`);
}

$("camera").hidden = !navigator.mediaDevices?.getUserMedia; // only on https and on this machine
$("camera").addEventListener("click", openCamera);
$("camera-off").addEventListener("click", closeCamera);
$("shoot").addEventListener("click", shoot);
$("pictures").addEventListener("change", (event) => addPictures(event.target.files));
$("clear").addEventListener("click", () => {
  removePictures(pictures);
  $("pictures").focus();
});
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
