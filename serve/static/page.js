// The page: pick a model and what it shall show; clips play in a grid, a slider leads between two.

import { ask, clipPath, curl, Refused, token } from "./api.js";
import { parse, Walk } from "./npy.js";

const COUNT = 8; // clips in the grid
const SIDE = 256; // pixels that a clip is enlarged to, about: small ones lose colour in mp4
const POINTS = 9; // clips that the slider leads through
const SAID = {
  frechet: "Fréchet distance to real clips", class_accuracy: "right class", motion_ratio: "motion over real",
};

const at = (id) => document.getElementById(id);
const walk = new Walk(at("screen"));
let models = [];
let running = new AbortController();

function model() {
  return models.find((each) => each.digest === at("model").value) ?? models[0];
}

function say(words) {
  at("status").textContent = words;
}

function complain(error) {
  if (error.name === "AbortError") return;
  const known = error instanceof Refused;
  at("error").textContent = known ? error.message : `The server cannot be reached (${error.message}).`;
  at("error").hidden = false;
  say("");
  if (known && error.status === 401) {
    at("token-box").hidden = false;
    at("token").focus();
  }
}

async function guarded(work) {
  at("error").hidden = true;
  try {
    await work();
  } catch (error) {
    complain(error);
  }
}

// What there is to draw.

async function load() {
  models = await (await ask("v1/models")).json();
  models.sort((a, b) => b.best - a.best);
  at("model").replaceChildren(
    ...models.map((each) => new Option(each.best ? `${each.name} (best)` : each.name, each.digest)),
  );
  at("token-box").hidden = true;
  describe();
}

function describe() {
  const { classes, conditions, any_length: anyLength, frames } = model();
  for (const id of ["class", "from-class", "to-class"]) {
    const named = classes.map((name) => new Option(name, name));
    at(id).replaceChildren(...(id === "class" ? [new Option("any", "")] : []), ...named);
    at(`${id}-field`).hidden = !conditions.includes("class");
  }
  if (classes.length > 1) at("to-class").selectedIndex = 1;
  at("text-field").hidden = !conditions.includes("text");
  at("image-field").hidden = !conditions.includes("image");
  at("frames-field").hidden = !anyLength;
  at("frames").value = anyLength ? frames : "";
  about();
}

function about() {
  const card = model();
  document.documentElement.style.setProperty("--aspect", card.width / card.height);
  const rows = [
    ["Name", card.name], ["Digest", card.digest],
    ["Clips", `${card.frames} frames of ${card.height}x${card.width}, ${card.fps} a second`],
    ["Asked for by", card.conditions.join(", ") || "seed alone"], ["Drawn as", card.drawing],
  ];
  for (const [key, words] of Object.entries(SAID)) {
    const value = card.metrics?.[key];
    if (typeof value === "number") rows.push([words, value.toPrecision(3)]);
  }
  const cells = rows.filter(([, value]) => value).flatMap(([term, value]) => {
    const [dt, dd] = [document.createElement("dt"), document.createElement("dd")];
    [dt.textContent, dd.textContent] = [term, value];
    return [dt, dd];
  });
  at("about").replaceChildren(...cells);
}

// The grid.

function asked() {
  const value = (id) => (at(`${id}-field`).hidden ? "" : at(id).value.trim());
  const truncation = Number(at("truncation").value);
  return {
    class: value("class"), text: value("text"), frames: value("frames"),
    truncation: truncation === 1 ? "" : truncation,
  };
}

function firstFrame() {
  return at("image-field").hidden ? undefined : at("image").files[0];
}

async function generate() {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  const first = Number(at("seed").value);
  const seeds = Array.from({ length: COUNT }, (_, k) => first + k);
  const cells = seeds.map(blank);
  for (const url of held.splice(0)) URL.revokeObjectURL(url);
  at("clips").replaceChildren(...cells);
  say("Drawing …");
  const began = performance.now();
  const drawn = await Promise.allSettled(seeds.map((seed, k) => fill(cells[k], seed, signal)));
  const failed = drawn.find((each) => each.status === "rejected");
  if (failed) throw failed.reason;
  const seconds = ((performance.now() - began) / 1000).toFixed(1);
  say(`${COUNT} clips, seeds ${first} to ${first + COUNT - 1}, drawn in ${seconds} s.`);
}

const held = []; // object URLs of what is shown

function blank() {
  const figure = document.createElement("figure");
  const area = document.createElement("div");
  area.className = "blank";
  figure.append(area);
  return figure;
}

async function fill(figure, seed, signal) {
  const card = model();
  const scale = Math.min(8, Math.max(1, Math.round(SIDE / Math.max(card.height, card.width))));
  const path = clipPath(card.digest, seed, asked(), "mp4", scale);
  const answer = firstFrame() ? await fromFrame(card, seed, scale, signal) : await ask(path, { signal });
  const name = decodeURIComponent(answer.headers.get("X-Raygen-Class") ?? "");
  const blob = await answer.blob();
  if (signal.aborted) return;
  const url = URL.createObjectURL(blob);
  held.push(url);
  const title = [name || asked().text, `seed ${seed}`].filter(Boolean).join(", ");
  const file = `${card.digest}-${seed}.mp4`;
  figure.replaceChildren(player(url, title), captionOf(title, url, file, firstFrame() ? "" : path));
}

function fromFrame(card, seed, scale, signal) {
  const body = new FormData();
  const { class: name, text, truncation, frames } = asked();
  body.append("model", card.digest);
  body.append("seeds", seed);
  body.append("image", firstFrame());
  body.append("scale", scale);
  if (name) body.append("classes", name);
  if (text) body.append("texts", text);
  if (truncation !== "") body.append("truncation", truncation);
  if (frames) body.append("frames", frames);
  return ask("v1/videos", { method: "POST", body, headers: { Accept: "video/mp4" }, signal });
}

function player(url, title) {
  const video = document.createElement("video");
  Object.assign(video, { src: url, loop: true, muted: true, playsInline: true });
  video.setAttribute("aria-label", title);
  if (!paused()) video.play().catch(() => {}); // a browser that forbids it shows the first frame
  return video;
}

function captionOf(title, url, file, path) {
  const caption = document.createElement("figcaption");
  const words = document.createElement("span");
  words.textContent = title;
  const actions = document.createElement("div");
  actions.className = "actions";
  const save = document.createElement("a");
  Object.assign(save, { href: url, download: file, textContent: "Download" });
  save.setAttribute("aria-label", `Download ${title}`);
  actions.append(save);
  if (path) {
    const copy = document.createElement("button");
    Object.assign(copy, { type: "button", textContent: "Copy curl" });
    copy.setAttribute("aria-label", `Copy as curl: ${title}`);
    copy.addEventListener("click", () => guarded(async () => {
      await navigator.clipboard.writeText(curl(path, file));
      say("The command is on the clipboard.");
    }));
    actions.append(copy);
  }
  caption.append(words, actions);
  return caption;
}

function paused() {
  return at("pause").getAttribute("aria-pressed") === "true";
}

function pause(stop) {
  at("pause").setAttribute("aria-pressed", String(stop));
  walk.paused = stop;
  for (const video of document.querySelectorAll("video")) {
    if (stop) video.pause();
    else video.play().catch(() => {});
  }
}

function walkSeeds(by) {
  at("seed").value = Math.max(0, Number(at("seed").value) + by);
  return guarded(generate);
}

// From one clip to another.

async function interpolate() {
  const card = model();
  const body = {
    model: card.digest, interpolate: true, n: POINTS, format: "npy",
    seeds: [Number(at("from").value), Number(at("to").value)],
  };
  if (card.conditions.includes("class")) body.classes = [at("from-class").value, at("to-class").value];
  say("Drawing the way between them …");
  const answer = await ask("v1/videos", {
    method: "POST", body: JSON.stringify(body),
    headers: { "Content-Type": "application/json", Accept: "application/x-npy" },
  });
  at("walk").hidden = false;
  walk.show(parse(await answer.arrayBuffer()), card.fps);
  say(`${POINTS} clips between them: move the slider.`);
}

// The look.

function theme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  at("theme").textContent = dark ? "Light" : "Dark";
}

const preferred = matchMedia("(prefers-color-scheme: dark)").matches;
theme(preferred);
at("theme").addEventListener("click", () => theme(document.documentElement.dataset.theme !== "dark"));
pause(matchMedia("(prefers-reduced-motion: reduce)").matches);

at("model").addEventListener("change", describe);
at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  guarded(generate);
});
at("random").addEventListener("click", () => {
  at("seed").value = Math.floor(Math.random() * 2 ** 31);
  guarded(generate);
});
at("earlier").addEventListener("click", () => walkSeeds(-COUNT));
at("later").addEventListener("click", () => walkSeeds(COUNT));
at("pause").addEventListener("click", () => pause(!paused()));
at("truncation").addEventListener("input", () => {
  at("truncation-shown").textContent = Number(at("truncation").value).toFixed(2);
});
at("between").addEventListener("submit", (event) => {
  event.preventDefault();
  guarded(interpolate);
});
at("place").addEventListener("input", () => {
  walk.place = Number(at("place").value);
  at("place-shown").textContent = `${Math.round(walk.place * 100)}%`;
  walk.draw();
});
at("token-use").addEventListener("click", () => {
  token.set(at("token").value.trim());
  guarded(begin);
});

async function begin() {
  await load();
  await generate();
}

guarded(begin);
