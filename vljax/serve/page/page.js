"use strict";
const $ = (id) => document.getElementById(id);
const SAMPLING = ["temperature", "top_p", "top_k", "repetition_penalty", "max_tokens", "seed"];
let server = {};
let media = null; // what the server made of the file
let turns = []; // {role, content}, of the conversation so far
let asking = null; // aborts the answer that is being written

function tell(problem) {
  $("problem").textContent = problem || "";
  $("problem").hidden = !problem;
}

function element(tag, into, properties = {}) {
  const made = Object.assign(document.createElement(tag), properties);
  into.append(made);
  return made;
}

async function told(response) { // the sentence of an answer that is an error
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

async function greet() {
  try {
    server = await (await fetch("health")).json();
  } catch {
    $("model").textContent = "the server cannot be reached";
    return;
  }
  $("model").textContent = server.model;
  for (const [box, can] of [["look", server.sees], ["listen", server.hears]]) {
    $(box).disabled = !can;
    $(box).checked = can;
  }
  $("max_tokens").max = server.new_tokens;
  $("max_tokens").value = Math.min(256, server.new_tokens);
}

async function upload(file) {
  tell();
  if (file.size > server.file_bytes) {
    tell(`${file.name} has ${file.size.toLocaleString("en")} bytes, expected at most ` +
      `${server.file_bytes.toLocaleString("en")}: send a smaller file`);
    return;
  }
  $("drop").classList.add("busy");
  try {
    const form = new FormData();
    form.append("purpose", "user_data");
    form.append("file", file);
    const response = await fetch("v1/files", { method: "POST", body: form });
    if (!response.ok) {
      tell(await told(response));
      return;
    }
    if (media) fetch(`v1/files/${media.id}`, { method: "DELETE" });
    media = await response.json();
    anew();
    show(file);
  } catch {
    tell("the server cannot be reached: is it still running?");
  } finally {
    $("drop").classList.remove("busy");
    $("file").value = "";
  }
}

function show(file) {
  const { kind, seconds, frames, at, sounds } = media.media;
  $("about").textContent = media.filename + (seconds ? `, ${seconds} s` : "") +
    (kind === "video" && !sounds ? ", no sound" : "");
  for (const old of $("player").children) URL.revokeObjectURL(old.src);
  $("player").replaceChildren();
  const tag = { image: "img", video: "video", audio: "audio" }[kind];
  element(tag, $("player"), { src: URL.createObjectURL(file), controls: true, alt: media.filename });
  strip("seen", "frames", frames, (i) => (kind === "video" ? `${at[i].toFixed(1)} s` : ""));
  strip("heard", "sounds", sounds, () => "");
}

function strip(figure, what, count, label) {
  $(figure).hidden = !count;
  $(what).replaceChildren();
  for (let i = 0; i < count; i++) {
    const cell = element("div", $(what));
    element("img", cell, { src: `v1/files/${media.id}/${what}/${i}.png`, alt: `${what} ${i + 1}` });
    cell.append(label(i));
  }
}

function switched() {
  $("frames").classList.toggle("off", !$("look").checked);
  $("sounds").classList.toggle("off", !$("listen").checked);
}

function anew() {
  if (asking) asking.abort();
  turns = [];
  $("turns").replaceChildren();
}

function say(role, text) {
  const item = element("li", $("turns"), { className: role, textContent: text });
  item.scrollIntoView({ block: "nearest" });
  return item;
}

function body() { // the file stands in the first message
  const used = media && ($("look").checked && media.media.frames ||
    $("listen").checked && media.media.sounds);
  const messages = turns.map((turn, i) => {
    if (i || !used) return turn;
    const file = { type: "file", file: { file_id: media.id } };
    return { role: turn.role, content: [file, { type: "text", text: turn.content }] };
  });
  const asked = { model: server.model, stream: true, messages };
  if (used) Object.assign(asked, { look: $("look").checked, listen: $("listen").checked });
  for (const name of SAMPLING) if ($(name).value !== "") asked[name] = Number($(name).value);
  return asked;
}

async function* pieces(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      yield chunk.choices[0]?.delta.content ?? "";
    }
  }
}

async function ask(question) {
  tell();
  turns.push({ role: "user", content: question });
  const asked = say("user", question);
  const answer = say("assistant writing", "");
  const mine = asking = new AbortController();
  working(true);
  let problem = "";
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body()),
      signal: mine.signal,
    });
    if (!response.ok) throw new Error(await told(response));
    for await (const piece of pieces(response)) answer.textContent += piece;
  } catch (error) {
    if (error.name !== "AbortError") problem = error.message;
  }
  answer.classList.remove("writing");
  if (asking !== mine) return; // the conversation is over
  asking = null;
  working(false);
  if (answer.textContent) {
    turns.push({ role: "assistant", content: answer.textContent });
  } else { // nothing was answered: as if it had not been asked
    turns.pop();
    asked.remove();
    answer.remove();
    $("question").value ||= question;
  }
  if (problem) say("failed", problem);
}

function working(on) {
  $("send").disabled = on;
  $("stop").hidden = !on;
}

$("file").addEventListener("change", (event) => event.target.files[0] && upload(event.target.files[0]));
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
    if (name === "drop" && event.dataTransfer.files[0]) upload(event.dataTransfer.files[0]);
  });
}
$("sample").addEventListener("click", async () => {
  const blob = await (await fetch("sample.mp4")).blob();
  upload(new File([blob], "sample.mp4", { type: "video/mp4" }));
});
$("senses").addEventListener("change", switched);
$("stop").addEventListener("click", () => asking && asking.abort());
$("anew").addEventListener("click", () => { anew(); working(false); tell(); });
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = $("question").value.trim();
  if (!question || asking) return;
  $("question").value = "";
  ask(question);
});
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
greet();
