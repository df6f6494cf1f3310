// The page: what is asked, sent to /api/search, and what comes back.
import { show } from "./answer.js";
import { asked, find, make, named } from "./dom.js";
import { Pictures } from "./pictures.js";

const IMAGES = ["sk", "cp", "nir", "rgb"];
const MOST_TRAIL = 20; // answers that "back" goes through
const page = { state: null, pictures: {}, trail: [], current: null, sent: null, seed: 0, filling: 0 };

function say(text, bad = false) {
  const box = find("status");
  box.hidden = !text;
  box.textContent = text;
  box.classList.toggle("bad", bad);
}

// The parts that are given, in the server's order of modalities.
function given() {
  const parts = page.state.takes.modalities.filter((part) => (part === "text" ? find("text").value.trim() : page.pictures[part].count));
  return parts;
}

const same = (one, other) => one.length === other.length && one.every((part) => other.includes(part));

function mixChanged() {
  if (!page.state) return;
  const { takes, rates, status } = page.state, parts = given();
  const legal = takes.combinations.some((mix) => same(mix, parts));
  let words = "";
  if (parts.length && !legal) {
    words = parts.includes("rgb") && parts.length > 1
      ? "A photo stands alone with this model: leave it out, or the other parts."
      : `This model does not take ${parts.map(named).join(" + ")} together.`;
  } else if (parts.length) words = `Searches by ${parts.map(named).join(" + ")}.`;
  find("mix").textContent = words;
  find("search").disabled = !legal || status !== "ready";
  // Before anything is given, whatever some mix has: an example is answered by it where it can be.
  const fitting = rates.filter((one) => !parts.length || same(one.mix, parts)), chosen = find("rate").value;
  const offered = [...new Set(fitting.flatMap((one) => one.rates))].sort((one, other) => one - other);
  const options = offered.map((rate) => make("option", { value: rate }, `${+(100 * rate).toPrecision(3)} %`));
  find("rate").replaceChildren(...(options.length ? options : [make("option", { value: "" }, "not calibrated")]));
  if (options.some((option) => option.value === chosen)) find("rate").value = chosen;
  find("rate").disabled = !options.length;
}

function settings() {
  const form = new FormData(), value = (id) => find(id).value.trim();
  form.set("top_k", value("top-k") || "20");
  for (const name of ["camera", "folder", "known"]) if (value(name)) form.set(name, value(name));
  if (find("folded").checked) form.set("fold", value("fold"));
  return form;
}

// The chosen rate, where queries of that mix have a threshold at it.
function setRate(form, rates) {
  if (rates.includes(Number(find("rate").value || NaN))) form.set("rate", find("rate").value);
}

async function ask(form) {
  if (page.sent) page.sent.abort();
  page.sent = new AbortController();
  document.body.classList.add("busy");
  say("Searching …");
  try {
    const response = await asked("/api/search", { method: "POST", body: form, signal: page.sent.signal });
    const answer = await response.json();
    if (page.current) page.trail = [...page.trail, page.current].slice(-MOST_TRAIL);
    const previews = {};
    for (const [name, value] of form) {
      if (value instanceof Blob) (previews[name] ||= []).push(URL.createObjectURL(value));
    }
    present({ form, answer, previews });
  } catch (error) {
    if (error.name !== "AbortError") say(error.message, true);
  } finally {
    document.body.classList.remove("busy");
  }
}

function present(found) {
  page.current = found;
  say("");
  show(found.answer, found.previews, (index) => {
    const form = settings(), { rates, gallery } = page.state;
    form.set("like", index);
    setRate(form, (rates.find((one) => same(one.mix, [gallery.modality])) || { rates: [] }).rates);
    ask(form);
  });
  find("back").hidden = !page.trail.length;
  find("answer").focus({ preventScroll: true });
  const { top } = find("answer").getBoundingClientRect();
  if (top < 0 || top > window.innerHeight / 2) find("answer").scrollIntoView({ block: "start" });
}

async function submit(event) {
  event.preventDefault();
  if (find("search").disabled) return;
  const form = settings();
  if (find("rate").value) form.set("rate", find("rate").value);
  for (const part of given()) {
    if (part === "text") form.set("text", find("text").value.trim());
    else for (const [blob, name] of await page.pictures[part].all()) form.append(part, blob, name);
  }
  if (page.state.takes.instruction) {
    if (find("instruction").value.trim()) form.set("instruction", find("instruction").value.trim());
    for (const [blob, name] of await page.pictures.instruction_image.all()) form.set("instruction_image", blob, name);
  }
  ask(form);
}

function clearAll() {
  find("text").value = find("instruction").value = "";
  for (const pictures of Object.values(page.pictures)) pictures.clear();
  mixChanged();
}

async function save(format) {
  const form = new FormData();
  for (const [name, value] of page.current.form) form.append(name, value);
  form.set("format", format);
  try {
    const response = await asked("/api/search", { method: "POST", body: form });
    const link = make("a", { href: URL.createObjectURL(await response.blob()), download: `retrieval.${format === "list" ? "json" : format}` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  } catch (error) {
    say(error.message, true);
  }
}

// An example as if its parts had been given by hand, so that one of them can be changed.
async function fill(example) {
  page.filling += 1;
  const turn = page.filling, { takes } = page.state;
  const parts = [...example.parts], told = takes.instruction && example.instruction;
  if (told) parts.push({ ...told, part: told.image ? "instruction_image" : "instruction" });
  const loaded = await Promise.all(parts.map(async (part) => part.image && (await asked(`${part.image}/original`)).blob()));
  if (turn !== page.filling) return; // another example was taken meanwhile
  clearAll();
  parts.forEach((part, place) => {
    if (!part.image) {
      find(part.part).value = part.text;
      return;
    }
    const pictures = page.pictures[part.part], type = loaded[place].type;
    pictures.add([new File([loaded[place]], `example ${example.id}.${type.split("/")[1]}`, { type })]);
    pictures.element.open = true;
  });
  mixChanged();
}

async function showExamples() {
  const { examples, note } = await (await asked(`/api/examples?seed=${page.seed}`)).json();
  find("examples").hidden = !examples.length && !note;
  find("more-examples").hidden = !examples.length;
  find("example-note").hidden = !note;
  find("example-note").textContent = note;
  find("example-list").replaceChildren(...examples.map((example) => {
    const mini = make("span", { className: "mini" }), words = example.parts.map((part) => named(part.part)).join(" + ");
    for (const part of example.parts) {
      mini.append(part.image ? make("img", { src: part.image, alt: "" }) : make("span", { className: "said" }, part.text));
    }
    const button = make("button", { type: "button", className: "example" }, mini, make("span", {}, words));
    button.addEventListener("click", () => {
      const form = settings();
      form.set("example", example.id);
      setRate(form, example.rates);
      ask(form);
      fill(example).catch((error) => say(error.message, true));
    });
    return button;
  }));
}

function build(state) {
  const { takes } = state;
  for (const part of ["text", "instruction"]) {
    const taken = part === "text" ? takes.modalities.includes("text") : takes.instruction;
    document.querySelector(`section[data-part="${part}"]`).hidden = !taken;
  }
  const several = takes.modalities.length > 1;
  find("lead").hidden = !several;
  if (!takes.combinations.some((mix) => mix.length > 1)) find("lead").textContent = "Any one of these is a query.";
  for (const part of IMAGES.filter((one) => takes.modalities.includes(one))) {
    page.pictures[part] = new Pictures(part, state.limits.pictures, mixChanged);
    find("image-parts").append(page.pictures[part].element);
  }
  const first = IMAGES.find((one) => page.pictures[one]);
  if (first) page.pictures[first].element.open = true;
  if (takes.instruction) {
    page.pictures.instruction_image = new Pictures("instruction_image", 1, mixChanged);
    find("instruction-picture").append(page.pictures.instruction_image.element);
  }
  find("fold").value = state.fold;
  find("fold-label").hidden = find("folded").parentElement.hidden = state.similarity !== "cosine";
  find("about").textContent = `Weights ${state.model.fingerprint} (${state.model.family}), ${state.model.checkpoint}. `
    + "Everything runs on the machine that serves this page; nothing is sent elsewhere, uploads are kept in memory for one search.";
}

function known(gallery) {
  find("place").textContent = `${gallery.name}: ${gallery.images.toLocaleString("en")} pictures`;
  for (const camera of gallery.cameras) find("camera").append(make("option", { value: camera }, camera));
  find("camera-label").hidden = gallery.cameras.length < 2;
  for (const folder of gallery.folders) find("folders").append(make("option", { value: folder }));
  find("folder-label").hidden = gallery.folders.length < 2;
  find("known-label").hidden = !gallery.persons_known || gallery.all_known;
}

async function start() {
  let built = false;
  for (;;) {
    try {
      page.state = await (await asked("/api/state")).json();
    } catch (error) {
      say(error.message, true);
      await new Promise((later) => setTimeout(later, 3000));
      continue;
    }
    if (!built) build(page.state);
    built = true;
    const { status, progress } = page.state;
    find("loading").hidden = status === "ready";
    if (status === "ready") break;
    find("loading-text").textContent = progress.total
      ? `The gallery is being encoded: ${progress.done.toLocaleString("en")} of ${progress.total.toLocaleString("en")} pictures. You can prepare the query meanwhile.`
      : "The gallery is being opened. You can prepare the query meanwhile.";
    if (progress.total) find("loading-bar").value = progress.done / progress.total;
    else find("loading-bar").removeAttribute("value");
    await new Promise((later) => setTimeout(later, 700));
  }
  say("");
  known(page.state.gallery);
  mixChanged();
  try {
    await showExamples();
  } catch (error) {
    say(error.message, true);
  }
}

find("query").addEventListener("submit", submit);
find("query").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit(event);
});
find("text").addEventListener("input", mixChanged);
find("clear").addEventListener("click", clearAll);
find("back").addEventListener("click", () => present(page.trail.pop()));
find("more-examples").addEventListener("click", () => {
  page.seed += 1;
  showExamples().catch((error) => say(error.message, true));
});
for (const button of find("downloads").querySelectorAll("button")) {
  button.addEventListener("click", () => save(button.dataset.format));
}
document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files], pictures = IMAGES.map((part) => page.pictures[part]).find((one) => one && one.element.open);
  if (files.length && pictures) pictures.add(files);
});
// A file that is dropped beside a field must not replace the page.
for (const type of ["dragover", "drop"]) window.addEventListener(type, (event) => event.preventDefault());
start();
