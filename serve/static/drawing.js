// A drawing pad: pen, eraser, undo, clear; mouse, pen and touch through pointer events.
import { make } from "./dom.js";

const WIDTH = 256, HEIGHT = 512, MOST_STROKES = 2000;

export class Drawing {
  // changed: called after every change. coloured: whether the pen has a colour to choose.
  constructor(name, coloured, changed) {
    this.strokes = [];
    this.changed = changed;
    this.erases = false;
    this.canvas = make("canvas", { width: WIDTH, height: HEIGHT, id: `canvas-${name}`, role: "img" });
    this.canvas.setAttribute("aria-label", "Drawing pad; without a pointer choose a file below instead");
    this.context = this.canvas.getContext("2d");
    this.colour = make("input", { type: "color", value: coloured ? "#c0392b" : "#101010", id: `colour-${name}` });
    this.size = make("input", { type: "range", min: 2, max: 40, value: coloured ? 12 : 5, id: `size-${name}` });
    this.pen = this.tool("Pen", () => this.choose(false));
    this.eraser = this.tool("Eraser", () => this.choose(true));
    this.undoing = this.tool("Undo", () => this.undo());
    this.clearing = this.tool("Clear", () => this.clear());
    const tools = make("div", { className: "tools" }, this.pen, this.eraser, this.undoing, this.clearing,
      make("label", {}, "Thickness", this.size), ...(coloured ? [make("label", {}, "Colour", this.colour)] : []));
    this.element = make("div", { className: "draw" }, this.canvas, tools);
    this.canvas.addEventListener("pointerdown", (event) => this.begin(event));
    this.canvas.addEventListener("pointermove", (event) => this.go(event));
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
      this.canvas.addEventListener(end, (event) => this.end(event));
    }
    this.choose(false);
    this.redraw();
  }

  tool(label, act) {
    const button = make("button", { type: "button" }, label);
    button.addEventListener("click", act);
    return button;
  }

  choose(erases) {
    this.erases = erases;
    this.pen.setAttribute("aria-pressed", String(!erases));
    this.eraser.setAttribute("aria-pressed", String(erases));
  }

  get empty() {
    return !this.strokes.some((stroke) => !stroke.erases);
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * WIDTH / box.width, (event.clientY - box.top) * HEIGHT / box.height];
  }

  begin(event) {
    if (event.button !== 0 || this.pointer !== undefined || this.strokes.length >= MOST_STROKES) return;
    event.preventDefault();
    this.pointer = event.pointerId;
    this.canvas.setPointerCapture(event.pointerId);
    // The blunt end of a pen reports button 5; it never gets here, so the eraser is a tool of its own.
    const width = Number(this.size.value) * (this.erases ? 4 : 1);
    this.strokes.push({ erases: this.erases, colour: this.colour.value, width, points: [this.place(event)] });
    this.redraw();
  }

  go(event) {
    if (event.pointerId !== this.pointer) return;
    // A fast pen moves several times between two frames.
    const events = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
    for (const one of events.length ? events : [event]) this.strokes.at(-1).points.push(this.place(one));
    this.redraw();
  }

  end(event) {
    if (event.pointerId !== this.pointer) return;
    this.pointer = undefined;
    this.tell();
  }

  undo() {
    this.strokes.pop();
    this.tell();
  }

  clear() {
    this.strokes = [];
    this.choose(false);
    this.tell();
  }

  tell() {
    this.redraw();
    this.changed();
  }

  redraw() {
    const pen = this.context;
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, WIDTH, HEIGHT);
    pen.lineCap = pen.lineJoin = "round";
    for (const { erases, colour, width, points } of this.strokes) {
      pen.strokeStyle = erases ? "#fff" : colour;
      pen.lineWidth = width;
      pen.beginPath();
      pen.moveTo(...points[0]);
      // A point alone is a dot.
      for (const point of points.length > 1 ? points.slice(1) : points) pen.lineTo(...point);
      pen.stroke();
    }
    this.undoing.disabled = this.clearing.disabled = !this.strokes.length;
  }

  // The drawing as a PNG file, null = nothing is drawn.
  file() {
    if (this.empty) return Promise.resolve(null);
    return new Promise((done) => this.canvas.toBlob(done, "image/png"));
  }
}
