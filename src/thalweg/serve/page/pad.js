// A drawing pad at the model's size: pen and eraser by mouse, finger, stylus or keys; undo; what is erased is unknown.

import { el } from "./dom.js";
import { imageShape, paint } from "./tensors.js";

const UNDO = 60;
const SCALE = 8; // of the layer that shows what is erased

/** Sends "change" when its image changed. `values` (C, H, W) in [0, 1]; `erased` (H, W) is 1 where nothing is known. */
export class Pad extends EventTarget {
  constructor(shape, { holes }) {
    super();
    this.shape = imageShape(shape);
    const [channels, height, width] = this.shape;
    Object.assign(this, { channels, height, width, holes, size: height * width, tool: "draw", colour: [1, 1, 1] });
    this.values = new Float32Array(channels * this.size);
    this.erased = new Uint8Array(this.size);
    this.past = [];
    this.cursor = null; // of the keys: [x, y]
    this.canvas = el("canvas");
    this.heat = el("canvas", { class: "layer", "aria-hidden": "true" });
    this.layer = el("canvas", { class: "layer", width: width * SCALE, height: height * SCALE, "aria-hidden": "true" });
    this.element = el(
      "div",
      {
        class: "pad",
        tabindex: "0",
        role: "application",
        "aria-roledescription": "drawing pad",
        "aria-label": `Drawing, ${width} by ${height} pixels. Arrow keys move the pen, the space bar makes a mark.`,
      },
      this.canvas,
      this.heat,
      this.layer,
    );
    this.element.style.setProperty("aspect-ratio", `${width} / ${height}`);
    this.listen();
    this.show();
  }

  get empty() {
    return !this.hasHoles && this.values.every((v) => v === 0);
  }

  get hasHoles() {
    return this.erased.some((on) => on);
  }

  /** Another image in place of this one; may be undone. */
  put(values) {
    this.remember();
    this.values = Float32Array.from(values);
    this.erased.fill(0);
    this.changed();
  }

  clear() {
    this.put(new Float32Array(this.values.length));
  }

  invert() {
    const erased = this.erased.slice();
    this.put(this.values.map((v, i) => (erased[i % this.size] ? 0 : 1 - v)));
    this.erased = erased;
    this.changed();
  }

  undo() {
    const before = this.past.pop();
    if (!before) return;
    Object.assign(this, before);
    this.changed();
  }

  remember() {
    this.past.push({ values: this.values.slice(), erased: this.erased.slice() });
    if (this.past.length > UNDO) this.past.shift();
  }

  changed() {
    this.show();
    this.dispatchEvent(new Event("change"));
  }

  show() {
    this.element.classList.toggle("blank", this.empty);
    paint(this.canvas, this);
    const pen = this.layer.getContext("2d");
    pen.clearRect(0, 0, this.layer.width, this.layer.height);
    pen.fillStyle = pen.createPattern(hatch(), "repeat");
    for (let i = 0; i < this.size; i++) {
      if (this.erased[i]) pen.fillRect((i % this.width) * SCALE, Math.floor(i / this.width) * SCALE, SCALE, SCALE);
    }
    if (this.cursor && document.activeElement === this.element) {
      const [x, y] = this.cursor;
      const reach = (this.radius + 0.5) * SCALE;
      for (const [colour, wide] of [["#000", 4], ["#fff", 2]]) {
        pen.strokeStyle = colour;
        pen.lineWidth = wide;
        pen.beginPath();
        pen.arc(x * SCALE, y * SCALE, reach, 0, 7);
        pen.stroke();
      }
    }
  }

  get radius() {
    const wide = Math.min(this.height, this.width);
    return this.tool === "draw" ? Math.max(0.6, 0.042 * wide) : Math.max(1, 0.09 * wide);
  }

  /** One stroke goes on from where it was to (x, y), in pixels. */
  stroke(x, y) {
    const [x0, y0] = this.at ?? [x, y];
    this.at = [x, y];
    const reach = this.radius + 0.5;
    const top = Math.max(0, Math.floor(Math.min(y, y0) - reach));
    const bottom = Math.min(this.height - 1, Math.ceil(Math.max(y, y0) + reach));
    const left = Math.max(0, Math.floor(Math.min(x, x0) - reach));
    const right = Math.min(this.width - 1, Math.ceil(Math.max(x, x0) + reach));
    for (let j = top; j <= bottom; j++) {
      for (let i = left; i <= right; i++) {
        const far = distance(i + 0.5, j + 0.5, x0, y0, x, y);
        this.mark(j * this.width + i, Math.min(1, Math.max(0, this.radius + 0.5 - far)));
      }
    }
    this.changed();
  }

  // The densest mark of the stroke counts, so that a stroke that crosses itself is no brighter there.
  mark(pixel, density) {
    if (density <= this.ink[pixel]) return;
    this.ink[pixel] = density;
    if (this.tool === "erase") {
      if (density < 0.5) return;
      if (this.holes) this.erased[pixel] = 1;
      for (let c = 0; c < this.channels; c++) this.values[c * this.size + pixel] = 0;
      return;
    }
    this.erased[pixel] = 0;
    for (let c = 0; c < this.channels; c++) {
      const k = c * this.size + pixel;
      this.values[k] = this.before[k] + density * (this.colour[Math.min(c, 2)] - this.before[k]);
    }
  }

  begin() {
    this.remember();
    this.at = null;
    this.before = this.values.slice();
    this.ink = new Float32Array(this.size);
  }

  listen() {
    const pad = this.element;
    const place = (event) => {
      const box = this.canvas.getBoundingClientRect();
      return [((event.clientX - box.left) / box.width) * this.width, ((event.clientY - box.top) / box.height) * this.height];
    };
    pad.addEventListener("pointerdown", (event) => {
      if (event.button > 0 || this.pointer !== undefined) return;
      this.pointer = event.pointerId;
      pad.setPointerCapture(event.pointerId);
      this.cursor = null;
      this.begin();
      this.stroke(...place(event));
    });
    pad.addEventListener("pointermove", (event) => {
      if (event.pointerId !== this.pointer) return;
      const steps = event.getCoalescedEvents?.() ?? [];
      for (const step of steps.length ? steps : [event]) this.stroke(...place(step));
    });
    for (const end of ["pointerup", "pointercancel"]) {
      pad.addEventListener(end, (event) => event.pointerId === this.pointer && (this.pointer = undefined));
    }
    pad.addEventListener("keydown", (event) => this.key(event));
    pad.addEventListener("focus", () => this.show());
    pad.addEventListener("blur", () => this.show());
  }

  key(event) {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") this.undo();
    else if (event.ctrlKey || event.metaKey || event.altKey) return;
    else if (step) {
      const [x, y] = this.cursor ?? [this.width / 2, this.height / 2];
      const from = [x, y];
      const by = Math.max(1, Math.round(Math.min(this.width, this.height) / 28));
      const within = (v, most) => Math.min(most - 0.5, Math.max(0.5, v));
      this.cursor = [within(x + by * step[0], this.width), within(y + by * step[1], this.height)];
      if (event.shiftKey) this.dab(from, this.cursor);
    } else if (event.key === " ") {
      this.cursor ??= [this.width / 2, this.height / 2];
      this.dab(this.cursor, this.cursor);
    } else return;
    event.preventDefault();
    this.show();
  }

  dab(from, to) {
    this.begin();
    this.at = from;
    this.stroke(...to);
  }
}

function distance(x, y, x0, y0, x1, y1) {
  const [dx, dy] = [x1 - x0, y1 - y0];
  const length = dx * dx + dy * dy;
  const along = length ? Math.min(1, Math.max(0, ((x - x0) * dx + (y - y0) * dy) / length)) : 0;
  return Math.hypot(x - x0 - along * dx, y - y0 - along * dy);
}

let pattern = null;

/** Grey stripes: no image that a model knows looks so. */
function hatch() {
  if (pattern) return pattern;
  pattern = new OffscreenCanvas(8, 8);
  const pen = pattern.getContext("2d");
  pen.fillStyle = "#7d7888";
  pen.fillRect(0, 0, 8, 8);
  pen.strokeStyle = "#a9a4b4";
  pen.lineWidth = 2.2;
  for (const shift of [-8, 0, 8]) {
    pen.beginPath();
    pen.moveTo(shift - 1, 9);
    pen.lineTo(shift + 9, -1);
    pen.stroke();
  }
  return pattern;
}
