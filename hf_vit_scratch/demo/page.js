"use strict";

const about = JSON.parse(document.getElementById("about").textContent);
const [canvas, model, file, answer, found, bars, refused] = [
  "canvas",
  "model",
  "file",
  "answer",
  "found",
  "bars",
  "refused",
].map((id) => document.getElementById(id));
const pen = canvas.getContext("2d", { willReadFrequently: true });
let picture = null; // what was asked last: a data URI, and whether it was drawn here
let questions = 0; // an answer that comes after a newer question is dropped
let stroke = null; // the pointer that draws
let foreign = false; // the canvas shows an upload or an example, which the next stroke takes the place of

// ---- the server

async function call(name, ...data) {
  const response = await fetch(`gradio_api/run/${name}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ data }),
  });
  if (!response.ok) throw new Error("The server could not answer.");
  const result = (await response.json()).data[0];
  if (result.refused) throw new Error(result.refused);
  return result;
}

/** Show the answer to a picture. Returns whether there was one, and no newer question since. */
async function ask(source, drawn) {
  const question = ++questions;
  picture = [source, drawn];
  refused.textContent = "";
  try {
    const result = await call("classify", model.value, source, drawn);
    if (question !== questions) return false;
    show(result);
    found.textContent = result.note;
    return true;
  } catch (error) {
    if (question === questions) refuse(error);
    return false;
  }
}

/** Ask for a picture that was not drawn, and show it on the canvas. */
async function askFor(source) {
  wipe();
  if ((await ask(source, false)) && stroke === null) paint(source);
}

function refuse(error) {
  forget();
  refused.textContent = error instanceof TypeError ? "The server is gone: start it again." : error.message;
}

// ---- the answer

function show(result) {
  answer.textContent = `${result.label}, ${percent(result.score)}`;
  bars.replaceChildren(...result.bars.map(([name, score]) => bar(name, score, name === result.label)));
  for (const [id, source] of [["given", result.given], ["under", result.given], ["looked", result.looked]]) {
    const image = document.getElementById(id);
    image.src = source;
    image.hidden = false;
  }
}

function bar(name, score, best) {
  const row = document.createElement("li");
  row.className = best ? "best" : "";
  for (const part of ["name", "track", "percent"]) {
    row.append(Object.assign(document.createElement("span"), { className: part }));
  }
  const [label, track, number] = row.children;
  label.textContent = label.title = name;
  number.textContent = percent(score);
  track.append(Object.assign(document.createElement("div"), { className: "bar" }));
  track.firstChild.style.width = `${100 * score}%`;
  return row;
}

function percent(score) {
  return `${(100 * score).toFixed(1)}%`;
}

/** Back to the empty page, without a question. */
function forget() {
  questions++;
  picture = null;
  refused.textContent = found.textContent = "";
  answer.textContent = draws() ? "Draw a digit" : "Upload a picture";
  bars.replaceChildren();
  for (const id of ["given", "under", "looked"]) document.getElementById(id).hidden = true;
}

// ---- drawing

function draws() {
  return about.models.find(({ name }) => name === model.value).draws;
}

function wipe() {
  foreign = false;
  pen.fillStyle = "black";
  pen.fillRect(0, 0, canvas.width, canvas.height);
}

/** Show a picture on the canvas, whole. */
async function paint(source) {
  foreign = true;
  const image = Object.assign(new Image(), { src: source });
  await image.decode();
  if (!foreign) return;
  const scale = Math.min(canvas.width / image.width, canvas.height / image.height);
  const [width, height] = [scale * image.width, scale * image.height];
  pen.drawImage(image, (canvas.width - width) / 2, (canvas.height - height) / 2, width, height);
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  return [
    ((event.clientX - box.left) / box.width) * canvas.width,
    ((event.clientY - box.top) / box.height) * canvas.height,
  ];
}

function line(from, to) {
  pen.strokeStyle = "white";
  pen.lineCap = pen.lineJoin = "round";
  pen.lineWidth = canvas.width / 13; // about two of the 28 pixels of MNIST
  pen.beginPath();
  pen.moveTo(...from);
  pen.lineTo(...to);
  pen.stroke();
}

canvas.addEventListener("pointerdown", (event) => {
  if (stroke !== null || event.button !== 0) return;
  event.preventDefault();
  if (foreign) wipe();
  canvas.setPointerCapture(event.pointerId);
  stroke = { id: event.pointerId, at: place(event) };
  line(stroke.at, stroke.at);
});

canvas.addEventListener("pointermove", (event) => {
  if (stroke?.id !== event.pointerId) return;
  for (const one of event.getCoalescedEvents?.() || [event]) {
    const next = place(one);
    line(stroke.at, next);
    stroke.at = next;
  }
});

for (const end of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(end, (event) => {
    if (stroke?.id !== event.pointerId) return;
    stroke = null;
    ask(canvas.toDataURL("image/png"), true);
  });
}

// ---- uploads and examples

file.addEventListener("change", () => {
  const [chosen] = file.files;
  file.value = ""; // so that the same file can be chosen again
  if (!chosen) return;
  forget();
  if (chosen.size > about.maxBytes) {
    wipe();
    refused.textContent = `This file has more than ${about.maxBytes / 2 ** 20} MB: choose a smaller one.`;
    return;
  }
  const reader = new FileReader();
  reader.onload = () => askFor(reader.result);
  reader.onerror = () => (refused.textContent = "The browser cannot read this file.");
  reader.readAsDataURL(chosen);
});

function example({ picture: source, label, read_as: readAs }) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = label === readAs ? "" : "wrong";
  button.append(Object.assign(new Image(), { src: source, alt: "" }));
  button.append(label === readAs ? label : `${label}, read as ${readAs}`);
  button.addEventListener("click", () => askFor(source));
  return button;
}

async function showExamples() {
  const section = document.getElementById("examples");
  const asked = model.value;
  section.hidden = !draws();
  document.getElementById("pictures").replaceChildren();
  if (section.hidden) return;
  const note = document.getElementById("note");
  note.textContent = "The model reads the sample to find digits that it gets wrong.";
  try {
    const found = await call("examples", asked);
    if (asked !== model.value) return;
    note.textContent = found.note;
    document.getElementById("pictures").append(...found.pictures.map(example));
  } catch (error) {
    note.textContent = error.message;
  }
}

// ---- the start

function choose() {
  const asked = picture;
  document.getElementById("draw").hidden = document.getElementById("clear").hidden = !draws();
  forget();
  if (asked) ask(...asked);
  showExamples();
}

document.getElementById("clear").addEventListener("click", () => {
  wipe();
  forget();
});
model.append(...about.models.map(({ name }) => new Option(name, name)));
model.addEventListener("change", choose);
document.getElementById("choice").hidden = about.models.length === 1;
wipe();
choose();
