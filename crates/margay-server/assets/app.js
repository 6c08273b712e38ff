"use strict";

const $ = (id) => document.getElementById(id);
const KEPT = "margay.conversations", SETTINGS = "margay.settings", KEY = "margay.key";
const MOST_KEPT = 30, THUMB = 96;
const STAGES = ["preprocess", "encode", "project", "prefill", "decode"];
const DOING = {
  preprocess: "Preparing the picture", encode: "Looking at the picture", project: "Looking at the picture",
  prefill: "Reading the question",
};
// What servers decode as it is; other kinds the browser turns into one of these.
const KNOWN = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"];

/** The conversation: { id, turns: [{ role, text, pictures: [{ data, thumb }], failed }] }; `data` is not kept. */
let talk = fresh();
let pictures = [];
let running = null;
let limits = { pictures: 16, pixels: 64e6, body_bytes: 64e6 };
let vision = true;
let lastRate = null;
/** Nobody gave the key: the server is not asked again until a person asks. */
let locked = false;

function fresh() {
  return { id: `${Date.now()}-${Math.random().toString(36).slice(2, 8)}`, turns: [] };
}

function make(name, properties = {}, ...children) {
  const { dataset, ...rest } = properties;
  const element = Object.assign(document.createElement(name), rest);
  if (dataset) Object.assign(element.dataset, dataset);
  element.append(...children);
  return element;
}

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

function say(text) { $("live").textContent = text; }

function notice(text) {
  $("notice").textContent = text || "";
  $("notice").hidden = !text;
}

// Storage may be forbidden or full; the page works without.
function kept(name, otherwise, store = localStorage) {
  try { return JSON.parse(store.getItem(name)) ?? otherwise; } catch { return otherwise; }
}
function keep(name, value, store = localStorage) {
  try { store.setItem(name, JSON.stringify(value)); return true; } catch { return false; }
}

// The server

async function call(path, options = {}) {
  const key = kept(KEY, null, sessionStorage);
  const headers = { ...(options.body ? { "content-type": "application/json" } : {}), ...(key ? { authorization: `Bearer ${key}` } : {}) };
  const response = await fetch(path, { ...options, headers });
  if (response.status !== 401) return response;
  locked = !await askForKey(Boolean(key));
  return locked ? response : call(path, options);
}

let asking = null;
function askForKey(wrong) {
  asking ??= new Promise((done) => {
    const door = $("door");
    $("wrong-key").hidden = !wrong;
    $("key").value = "";
    door.onclose = () => {
      asking = null;
      const key = $("key").value.trim();
      if (key) keep(KEY, key, sessionStorage);
      done(Boolean(key));
    };
    door.showModal();
  });
  return asking;
}

const bytes = (n) => n == null ? "–" : n >= 1e9 ? `${(n / 1e9).toFixed(1)} GB` : `${Math.round(n / 1e6)} MB`;
const time = (ms) => ms == null ? "unknown" : ms >= 10000 ? `${(ms / 1000).toFixed(1)} s` : ms >= 1000 ? `${(ms / 1000).toFixed(2)} s` : `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;

async function look() {
  if (locked || document.visibilityState === "hidden") return;
  try {
    const response = await call("v1/margay/status");
    if (!response.ok) return;
    const status = await response.json();
    limits = { ...limits, ...status.limits };
    vision = status.vision;
    for (const id of ["pick", "camera", "pick-first", "camera-first"]) $(id).disabled = !vision;
    $("model").textContent = status.model;
    $("memory").textContent = bytes(status.rss_bytes);
    $("heat").textContent = status.temperature_celsius == null ? "unknown" : `${Math.round(status.temperature_celsius)} °C`;
    $("heat").parentElement.classList.toggle("unknown", status.temperature_celsius == null);
    $("heat").title = status.power_watts == null ? "" : `${status.power_watts.toFixed(1)} W: ${status.power_scope ?? ""}`;
    const rate = lastRate ?? (status.decode_ms_per_token ? 1000 / status.decode_ms_per_token : null);
    $("speed").textContent = rate == null ? "–" : `${rate.toFixed(rate < 10 ? 1 : 0)} tok/s`;
  } catch { $("memory").textContent = $("heat").textContent = "offline"; }
}

function watch() {
  look().finally(() => setTimeout(watch, running ? 1000 : 3000));
}

// Pictures

async function add(files) {
  notice("");
  for (const file of files) {
    if (!file.type.startsWith("image/")) { notice(`${file.name || "That"} is no picture.`); continue; }
    if (!vision) { notice("This model cannot see pictures."); return; }
    const had = talk.turns.flatMap((turn) => turn.pictures ?? []).length;
    if (had + pictures.length >= limits.pictures) { notice(`A conversation holds ${limits.pictures} pictures at most.`); return; }
    try { pictures.push(await picture(file)); } catch { notice(`${file.name || "The picture"} cannot be read by this browser.`); }
  }
  showPictures();
  $("question").focus();
}

async function picture(blob) {
  const bitmap = await createImageBitmap(blob);
  const scale = Math.min(1, Math.sqrt(limits.pixels / limits.pictures / (bitmap.width * bitmap.height)));
  const asItIs = KNOWN.includes(blob.type) && scale === 1;
  const sent = asItIs ? blob : await drawn(bitmap, scale, "image/png");
  const thumb = await drawn(bitmap, Math.min(1, THUMB / Math.min(bitmap.width, bitmap.height)), "image/jpeg");
  const name = `${blob.name ?? "picture"}, ${bitmap.width} by ${bitmap.height}`;
  bitmap.close();
  return { data: await dataUrl(sent), thumb: await dataUrl(thumb), name };
}

function drawn(bitmap, scale, type) {
  const canvas = make("canvas", { width: Math.max(1, Math.round(bitmap.width * scale)), height: Math.max(1, Math.round(bitmap.height * scale)) });
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((done, fail) => canvas.toBlob((blob) => blob ? done(blob) : fail(new Error("no picture")), type, .8));
}

function dataUrl(blob) {
  return new Promise((done, fail) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => fail(reader.error);
    reader.readAsDataURL(blob);
  });
}

function showPictures() {
  $("pictures").replaceChildren(...pictures.map((one, at) => {
    const remove = make("button", { type: "button", title: "Remove" }, icon("x"));
    remove.setAttribute("aria-label", `Remove ${one.name}`);
    remove.onclick = () => { pictures.splice(at, 1); showPictures(); $("question").focus(); };
    return make("li", {}, make("img", { src: one.thumb, alt: one.name }), remove);
  }));
  $("pictures").hidden = pictures.length === 0;
}

async function shoot() {
  if (!navigator.mediaDevices?.getUserMedia) { notice("Browsers give the camera to pages of this machine and to https pages only."); return; }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1920 } } });
  } catch (error) {
    notice(error.name === "NotAllowedError" ? "The camera was not allowed." : "There is no camera to use.");
    return;
  }
  const video = $("video"), dialog = $("shutter");
  video.srcObject = stream;
  await video.play();
  $("snap").onclick = async () => {
    const canvas = make("canvas", { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", .92));
    dialog.close();
    if (blob) add([new File([blob], "camera.jpg", { type: "image/jpeg" })]);
  };
  dialog.onclose = () => { stream.getTracks().forEach((track) => track.stop()); video.srcObject = null; };
  dialog.showModal();
}

// The conversation

function show() {
  $("welcome").hidden = talk.turns.length > 0;
  $("talk").replaceChildren(...talk.turns.map((turn) => turn.role === "user" ? asked(turn) : answer(turn).item));
  const gone = talk.turns.some((turn) => turn.pictures?.some((one) => !one.data));
  if (gone) $("talk").append(make("li", { className: "gone", textContent: "Its pictures are kept as thumbnails only: add them again to ask more about them." }));
  toEnd(true);
}

function asked(turn) {
  const item = make("li", { className: "asked" });
  if (turn.pictures?.length) {
    item.append(make("div", { className: "seen" }, ...turn.pictures.map((one) =>
      make("img", { src: one.data ?? one.thumb, alt: one.name ?? "picture", className: one.data && turn.pictures.length === 1 ? "" : "small" }))));
  }
  if (turn.text) item.append(make("p", { className: "words", textContent: turn.text }));
  return item;
}

function answer(turn) {
  const words = make("p", { className: "words", textContent: turn.text ?? "" });
  const item = make("li", { className: `answer${turn.failed ? " failed" : ""}` }, words);
  const bar = make("div", { className: "bar" }), legend = make("ul", { className: "legend" }), facts = make("span");
  const measures = make("div", { className: "measures", hidden: true }, bar, legend);
  bar.setAttribute("aria-hidden", "true");
  legend.setAttribute("aria-label", "Time of each stage");
  const copy = make("button", { type: "button", className: "ghost small copy", hidden: !turn.text || turn.failed }, icon("copy"), "Copy");
  copy.onclick = () => copyText(turn.text, copy);
  item.append(measures, make("div", { className: "foot" }, copy, facts));
  // A fast model says more than a screen shows: what came is shown once a frame, and what is shown is left as it is.
  let pending = "";
  const view = {
    item, words, copy,
    write(piece) {
      if (!pending) requestAnimationFrame(() => { if (item.classList.contains("waiting")) words.append(pending); pending = ""; toEnd(); });
      pending += piece;
    },
    stages(ms) {
      const ran = STAGES.filter((stage) => ms[stage] != null);
      measures.hidden = ran.length === 0;
      while (bar.children.length < ran.length) bar.append(make("i"));
      ran.forEach((stage, at) => { bar.children[at].className = stage; bar.children[at].style.flexGrow = ms[stage]; });
      legend.replaceChildren(...ran.map((stage) => make("li", {}, make("i", { className: stage }), `${stage} ${time(ms[stage])}`)));
    },
    facts(told) {
      const rate = told.decode_tokens_per_second;
      facts.textContent = [
        told.ttft_ms != null && `first token after ${time(told.ttft_ms)}`,
        rate && `${rate.toFixed(rate < 10 ? 1 : 0)} tok/s`,
        told.visual_tokens && `${told.visual_tokens} visual tokens`,
        told.reused_tokens && `${told.reused_tokens} reused`,
        told.stop === "length" && "cut at the limit of tokens",
        told.stop === "context" && "cut: the context is full",
        told.stopped && "stopped",
      ].filter(Boolean).join(" · ");
    },
  };
  if (turn.measures) { view.stages(turn.measures.stages); view.facts(turn.measures); }
  return view;
}

async function copyText(text, button) {
  try { await navigator.clipboard.writeText(text); } catch {
    // Without a secure origin there is no clipboard but the old one.
    const area = make("textarea", { value: text, className: "hidden" });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.replaceChildren(icon("check"), "Copied");
  say("Copied");
  setTimeout(() => button.replaceChildren(icon("copy"), "Copy"), 1500);
}

function toEnd(always) {
  const main = document.querySelector("main");
  if (always || main.scrollHeight - main.scrollTop - main.clientHeight < 120) main.scrollTop = main.scrollHeight;
}

function messages() {
  const settings = kept(SETTINGS, {});
  const said = talk.turns.filter((turn) => !turn.failed).map((turn) => {
    const shown = (turn.pictures ?? []).filter((one) => one.data);
    if (turn.role === "assistant" || shown.length === 0) return { role: turn.role, content: turn.text };
    const parts = shown.map((one) => ({ type: "image_url", image_url: { url: one.data } }));
    if (turn.text) parts.push({ type: "text", text: turn.text });
    return { role: "user", content: parts };
  });
  return settings.system ? [{ role: "system", content: settings.system }, ...said] : said;
}

async function ask() {
  const text = $("question").value.trim();
  if (running || (!text && pictures.length === 0)) return;
  notice("");
  locked = false;
  const mine = talk;
  const question = { role: "user", text: text || "Describe the picture.", pictures };
  const reply = { role: "assistant", text: "" };
  mine.turns.push(question);
  pictures = [];
  showPictures();
  $("question").value = "";
  fit();
  $("welcome").hidden = true;
  const view = answer(reply);
  view.item.classList.add("waiting");
  view.words.dataset.doing = "Waiting for the model";
  $("talk").append(asked(question), view.item);
  toEnd(true);
  say("Asked. Waiting for the answer.");
  running = new AbortController();
  busy(true);
  const settings = kept(SETTINGS, {});
  const ms = {};
  let firstText = null, told = {}, failure = null;
  const live = setInterval(() => {
    if (firstText != null) { ms.decode = performance.now() - firstText; view.stages(ms); }
  }, 200);
  try {
    const response = await call("v1/chat/completions", {
      method: "POST", signal: running.signal,
      body: JSON.stringify({
        messages: messages(), stream: true, stream_options: { include_usage: true, include_stages: true },
        max_tokens: Math.min(Number(settings.tokens) || 512, limits.tokens ?? 512), temperature: Number(settings.temperature) || 0,
      }),
    });
    if (!response.ok) {
      const body = await response.json().catch(() => null);
      throw new Error(body?.error?.message ?? `The server said ${response.status}.`);
    }
    for await (const chunk of events(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      const stage = chunk.margay;
      if (stage) {
        ms[stage.stage] = (ms[stage.stage] ?? 0) + stage.took_ms;
        view.words.dataset.doing = (DOING[stage.stage] ?? "Working") + (stage.of > 1 ? ` (${stage.done} of ${stage.of})` : "");
        view.stages(ms);
      }
      const choice = chunk.choices?.[0];
      if (choice?.delta?.content) {
        firstText ??= performance.now();
        reply.text += choice.delta.content;
        view.write(choice.delta.content);
      }
      if (choice?.margay) told = choice.margay;
    }
  } catch (error) {
    if (error.name === "AbortError") told = { stopped: true }; else failure = error.message;
  }
  clearInterval(live);
  for (const stage of STAGES) if (told[`${stage}_ms`] != null) ms[stage] = told[`${stage}_ms`];
  reply.measures = { ...told, stages: ms };
  if (told.decode_tokens_per_second) lastRate = told.decode_tokens_per_second;
  running = null;
  if (failure) {
    reply.failed = true;
    reply.text = failure;
    view.item.classList.add("failed");
    view.words.textContent = failure;
    // What was asked can be asked again, without being typed again.
    question.failed = true;
    if (!$("question").value) { $("question").value = text; fit(); }
    if (pictures.length === 0) { pictures = question.pictures; showPictures(); }
  }
  if (!failure && !reply.text) question.failed = reply.failed = true;
  mine.turns.push(reply);
  view.item.classList.remove("waiting");
  if (!failure) view.words.textContent = reply.text || (told.stopped ? "Stopped." : "The model said nothing.");
  view.stages(ms);
  view.facts(reply.measures);
  view.copy.hidden = Boolean(failure) || !reply.text;
  busy(false);
  say(failure ? `It failed: ${failure}` : `Answer: ${reply.text}`);
  toEnd();
  remember(mine);
  look();
}

/** The data of a stream of events, as JSON, until the stream ends. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
    }
  }
}

function busy(is) {
  $("send").hidden = is;
  $("stop").hidden = !is;
  document.body.classList.toggle("busy", is);
  $("question").focus();
}

function stop() { running?.abort(); }

// What this browser keeps

function remember(one) {
  const turns = one.turns.map(({ pictures: seen, ...turn }) => seen?.length ? { ...turn, pictures: seen.map(({ thumb, name }) => ({ thumb, name })) } : turn);
  let all = [{ id: one.id, turns }, ...kept(KEPT, []).filter((other) => other.id !== one.id)].slice(0, MOST_KEPT);
  while (!keep(KEPT, all) && all.length > 1) all = all.slice(0, -1);
  showHistory();
}

function showHistory() {
  const all = kept(KEPT, []);
  $("no-history").hidden = all.length > 0;
  $("forget").hidden = all.length === 0;
  $("history").replaceChildren(...all.map((one) => {
    const first = one.turns.find((turn) => turn.role === "user");
    const thumb = one.turns.flatMap((turn) => turn.pictures ?? [])[0]?.thumb;
    const open = make("button", { type: "button", className: "open" },
      thumb ? make("img", { src: thumb, alt: "" }) : make("span", { className: "blank" }),
      make("span", { textContent: first?.text ?? "…" }));
    open.onclick = () => { if (!running) { talk = one; show(); showHistory(); side(false); } };
    const drop = make("button", { type: "button", className: "ghost drop", title: "Forget" }, icon("x"));
    drop.setAttribute("aria-label", `Forget: ${first?.text ?? ""}`);
    drop.onclick = () => { keep(KEPT, kept(KEPT, []).filter((other) => other.id !== one.id)); if (one.id === talk.id && !running) begin(); showHistory(); };
    const item = make("li", {}, open, drop);
    if (one.id === talk.id) item.setAttribute("aria-current", "true");
    return item;
  }));
}

function begin() {
  if (running) stop();
  talk = fresh();
  pictures = [];
  showPictures();
  notice("");
  show();
  showHistory();
  side(false);
  $("question").focus();
}

function side(shown) {
  $("side").classList.toggle("shown", shown);
  $("shade").hidden = !shown;
  $("menu").setAttribute("aria-expanded", String(shown));
  if (shown) ($("history").querySelector("button") ?? $("side")).focus();
}

function fit() {
  const area = $("question");
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight}px`;
}

// Wires

$("composer").onsubmit = (event) => { event.preventDefault(); ask(); };
$("question").oninput = fit;
$("question").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); ask(); }
};
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if ($("side").classList.contains("shown")) { side(false); $("menu").focus(); } else stop();
});
$("stop").onclick = stop;
$("new").onclick = begin;
$("menu").onclick = () => side(!$("side").classList.contains("shown"));
$("shade").onclick = () => side(false);
$("forget").onclick = () => { keep(KEPT, []); begin(); };
for (const id of ["pick", "pick-first"]) $(id).onclick = () => $("file").click();
for (const id of ["camera", "camera-first"]) $(id).onclick = shoot;
$("file").onchange = () => { add([...$("file").files]); $("file").value = ""; };
document.querySelectorAll("[data-close]").forEach((button) => { button.onclick = () => button.closest("dialog").close(); });

$("tune").onclick = () => {
  const settings = kept(SETTINGS, {});
  $("system").value = settings.system ?? "";
  $("temperature").value = settings.temperature ?? 0;
  $("warmth").textContent = $("temperature").value;
  $("tokens").value = settings.tokens ?? 512;
  $("settings").showModal();
};
$("temperature").oninput = () => { $("warmth").textContent = $("temperature").value; };
$("settings").onclose = () => keep(SETTINGS, { system: $("system").value.trim(), temperature: Number($("temperature").value), tokens: Math.max(1, Number($("tokens").value) || 512) });

document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files].filter((file) => file.type.startsWith("image/"));
  if (files.length) { event.preventDefault(); add(files); }
});
let inside = 0;
const carries = (event) => event.dataTransfer?.types.includes("Files");
document.addEventListener("dragenter", (event) => { if (carries(event)) { inside += 1; $("drop").hidden = false; } });
document.addEventListener("dragleave", (event) => { if (carries(event) && (inside -= 1) <= 0) { inside = 0; $("drop").hidden = true; } });
document.addEventListener("dragover", (event) => { if (carries(event)) event.preventDefault(); });
document.addEventListener("drop", (event) => {
  if (!carries(event)) return;
  event.preventDefault();
  inside = 0;
  $("drop").hidden = true;
  add([...event.dataTransfer.files]);
});
document.addEventListener("visibilitychange", look);

showHistory();
watch();
if (matchMedia("(hover: hover)").matches) $("question").focus();
