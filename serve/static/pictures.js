// Pictures of one part of the query: files that are chosen, dropped or pasted, and what is drawn.
import { Drawing } from "./drawing.js";
import { make, named } from "./dom.js";

const HINTS = {
  rgb: "A photograph of the person.",
  nir: "From an infrared camera.",
  cp: "Draw it in colour, or choose a file.",
  sk: "Draw it, or choose a file.",
  instruction_image: "Or a picture of clothes.",
};

export class Pictures {
  // most: pictures that are taken; several are averaged. changed: called after every change.
  constructor(part, most, changed) {
    this.part = part;
    this.most = most;
    this.changed = changed;
    this.files = [];
    this.thumbs = make("div", { className: "thumbs" });
    this.input = make("input", { type: "file", accept: "image/*", multiple: most > 1, id: `file-${part}` });
    this.input.setAttribute("aria-label", `${named(part)}: choose files`);
    this.input.addEventListener("change", () => {
      this.add(this.input.files);
      this.input.value = "";
    });
    this.zone = make("div", { className: "drop" }, this.input);
    for (const type of ["dragenter", "dragover"]) {
      this.zone.addEventListener(type, (event) => {
        event.preventDefault();
        this.zone.classList.add("over");
      });
    }
    this.zone.addEventListener("dragleave", () => this.zone.classList.remove("over"));
    this.zone.addEventListener("drop", (event) => {
      event.preventDefault();
      this.zone.classList.remove("over");
      this.add(event.dataTransfer.files);
    });
    const drawn = part === "sk" || part === "cp";
    this.drawing = drawn ? new Drawing(part, part === "cp", () => this.tell()) : null;
    this.used = make("span", { className: "used" });
    const several = most > 1 ? " Several of one person are averaged." : "";
    const hint = make("p", { className: "soft" }, (HINTS[part] || "Choose a file.") + several);
    this.element = make("details", { className: "part" }, make("summary", {}, named(part), this.used), hint,
      ...(drawn ? [this.drawing.element] : []), this.thumbs, this.zone);
    this.element.dataset.part = part;
  }

  get count() {
    return this.files.length + (this.drawing && !this.drawing.empty ? 1 : 0);
  }

  add(files) {
    for (const file of files) if (this.files.length < this.most) this.files.push(file);
    this.tell();
  }

  clear() {
    this.files = [];
    if (this.drawing && this.drawing.strokes.length) this.drawing.clear();
    this.tell();
  }

  tell() {
    this.used.textContent = this.count ? (this.count > 1 ? `${this.count} pictures` : "in use") : "";
    for (const image of this.thumbs.querySelectorAll("img")) URL.revokeObjectURL(image.src);
    this.thumbs.replaceChildren(...this.files.map((file, place) => {
      const image = make("img", { src: URL.createObjectURL(file), alt: file.name });
      const away = make("button", { type: "button", title: `Remove ${file.name}` }, "×");
      away.setAttribute("aria-label", `Remove ${file.name}`);
      away.addEventListener("click", () => {
        this.files.splice(place, 1);
        this.tell();
      });
      return make("div", { className: "thumb" }, image, away);
    }));
    this.changed();
  }

  // [blob, name] of every picture.
  async all() {
    const found = this.files.map((file) => [file, file.name]);
    const drawn = this.drawing ? await this.drawing.file() : null;
    return drawn ? [...found, [drawn, "drawn.png"]] : found;
  }
}
