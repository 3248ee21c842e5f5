// The drawing board: pixels of the model's size, marks of what to fill in, and a cursor for the keyboard.
const ROOM = 560; // pixels of the canvas itself, at most

export class Board {
  constructor(canvas, place) {
    this.canvas = canvas;
    this.place = place;
    this.brush = () => ({ tool: "paint", colour: [255, 255, 255], size: 1 });
    this.cursor = { x: 0, y: 0 };
    this.down = false;
    this.past = [];
    this.resize(8, 8);
    this.listen();
  }

  /** Another size: the board is cleared. */
  resize(width, height) {
    if (this.width === width && this.height === height) return;
    this.width = width;
    this.height = height;
    this.scale = Math.max(1, Math.floor(ROOM / Math.max(width, height)));
    this.canvas.width = width * this.scale;
    this.canvas.height = height * this.scale;
    this.small = new OffscreenCanvas(width, height);
    this.ink = this.small.getContext("2d", { willReadFrequently: true });
    this.cursor = { x: Math.floor(width / 2), y: Math.floor(height / 2) };
    this.past = [];
    this.clear();
  }

  clear() {
    this.remember();
    this.ink.fillStyle = "#000";
    this.ink.fillRect(0, 0, this.width, this.height);
    this.marks = new Uint8Array(this.width * this.height);
    this.draw();
  }

  clearMarks() {
    this.remember();
    this.marks = new Uint8Array(this.width * this.height);
    this.draw();
  }

  /** Put a picture on the board: shrunk to its size, its middle where the sides differ. grey: without colours. */
  put(bitmap, grey) {
    this.remember();
    const share = Math.max(this.width / bitmap.width, this.height / bitmap.height);
    const [wide, high] = [this.width / share, this.height / share];
    this.ink.imageSmoothingEnabled = share < 1;
    this.ink.imageSmoothingQuality = "high";
    const [left, top] = [(bitmap.width - wide) / 2, (bitmap.height - high) / 2];
    this.ink.fillStyle = "#000";
    this.ink.fillRect(0, 0, this.width, this.height);
    this.ink.drawImage(bitmap, left, top, wide, high, 0, 0, this.width, this.height);
    if (grey) this.withoutColours();
    this.draw();
  }

  withoutColours() {
    const data = this.ink.getImageData(0, 0, this.width, this.height);
    for (let at = 0; at < data.data.length; at += 4) {
      const [red, green, blue] = data.data.subarray(at, at + 3);
      data.data.fill(Math.round(0.299 * red + 0.587 * green + 0.114 * blue), at, at + 3);
    }
    this.ink.putImageData(data, 0, 0);
  }

  remember() {
    if (!this.marks) return;
    this.past.push([this.ink.getImageData(0, 0, this.width, this.height), this.marks.slice()]);
    if (this.past.length > 50) this.past.shift();
  }

  /** Take the last change back; false where there is none. */
  undo() {
    const before = this.past.pop();
    if (!before) return false;
    this.ink.putImageData(before[0], 0, 0);
    this.marks = before[1];
    this.draw();
    return true;
  }

  get marked() {
    return this.marks.some((mark) => mark);
  }

  /** The picture as a PNG of the model's size. */
  picture() {
    return this.small.convertToBlob({ type: "image/png" });
  }

  /** The mask as a PNG: transparent where the picture is to be filled in. */
  mask() {
    const sheet = new OffscreenCanvas(this.width, this.height);
    const context = sheet.getContext("2d");
    const data = context.createImageData(this.width, this.height);
    this.marks.forEach((mark, index) => data.data.set([0, 0, 0, mark ? 0 : 255], 4 * index));
    context.putImageData(data, 0, 0);
    return sheet.convertToBlob({ type: "image/png" });
  }

  /** One spot of the brush, its middle at a pixel. */
  spot(x, y) {
    const { tool, colour, size } = this.brush();
    const first = -Math.floor((size - 1) / 2);
    const [left, top] = [Math.max(0, x + first), Math.max(0, y + first)];
    const [right, bottom] = [Math.min(this.width, x + first + size), Math.min(this.height, y + first + size)];
    if (tool === "paint") {
      this.ink.fillStyle = `rgb(${colour.join(" ")})`;
      this.ink.fillRect(left, top, right - left, bottom - top);
    } else {
      for (let row = top; row < bottom; row++) this.marks.fill(tool === "mask" ? 1 : 0, row * this.width + left, row * this.width + right);
    }
  }

  /** Spots on the straight line between two pixels. */
  line(from, to) {
    const count = Math.max(Math.abs(to.x - from.x), Math.abs(to.y - from.y), 1);
    for (let step = 0; step <= count; step++) {
      const share = step / count;
      this.spot(Math.round(from.x + share * (to.x - from.x)), Math.round(from.y + share * (to.y - from.y)));
    }
    this.draw();
  }

  draw() {
    const sheet = this.canvas.getContext("2d");
    const size = this.scale;
    sheet.imageSmoothingEnabled = false;
    sheet.drawImage(this.small, 0, 0, this.canvas.width, this.canvas.height);
    sheet.lineWidth = Math.max(1, size / 8);
    this.marks.forEach((mark, index) => {
      if (!mark) return;
      const [left, top] = [(index % this.width) * size, Math.floor(index / this.width) * size];
      sheet.fillStyle = "#c2185b";
      sheet.fillRect(left, top, size, size);
      sheet.strokeStyle = "#fff";
      sheet.beginPath();
      sheet.moveTo(left, top + size);
      sheet.lineTo(left + size, top);
      sheet.stroke();
    });
    if (document.activeElement !== this.canvas) return;
    for (const [colour, inset] of [["#000", 0.5], ["#ffb366", 2.5]]) {
      sheet.strokeStyle = colour;
      sheet.lineWidth = 2;
      sheet.strokeRect(this.cursor.x * size + inset, this.cursor.y * size + inset, size - 2 * inset, size - 2 * inset);
    }
  }

  tell() {
    const pen = this.down ? "the brush is down" : "the brush is up";
    const mark = this.marks[this.cursor.y * this.width + this.cursor.x] ? ", marked" : "";
    this.place.textContent = `Column ${this.cursor.x + 1}, row ${this.cursor.y + 1}${mark}; ${pen}.`;
  }

  listen() {
    const where = (event) => {
      const box = this.canvas.getBoundingClientRect();
      const part = (value, low, size, most) => Math.min(most - 1, Math.max(0, Math.floor(((value - low) / size) * most)));
      return { x: part(event.clientX, box.left, box.width, this.width), y: part(event.clientY, box.top, box.height, this.height) };
    };
    let last = null;
    this.canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      this.canvas.setPointerCapture(event.pointerId);
      this.remember();
      last = where(event);
      this.cursor = last;
      this.line(last, last);
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (!last) return;
      const now = where(event);
      this.cursor = now;
      this.line(last, now);
      last = now;
    });
    for (const name of ["pointerup", "pointercancel"]) this.canvas.addEventListener(name, () => { last = null; });
    for (const name of ["focus", "blur"]) this.canvas.addEventListener(name, () => {
      this.down = false;
      if (name === "focus") this.tell();
      this.draw();
    });
    this.canvas.addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const before = { ...this.cursor };
    if (ways[event.key]) {
      const [x, y] = ways[event.key];
      this.cursor = { x: Math.min(this.width - 1, Math.max(0, before.x + x)), y: Math.min(this.height - 1, Math.max(0, before.y + y)) };
      if (this.down) this.line(before, this.cursor);
    } else if (event.key === "Enter" || event.key === " ") {
      if (event.key === " ") this.down = !this.down;
      if (event.key === "Enter" || this.down) {
        this.remember();
        this.line(before, before);
      }
    } else if (event.key === "Escape") {
      this.down = false;
    } else {
      return;
    }
    event.preventDefault();
    this.draw();
    this.tell();
  }
}
