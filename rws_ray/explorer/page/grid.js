// A canvas of units between 0 and 1: shown, and where it may be edited, switched by pointer or by keys.

export class Grid {
  constructor(canvas, onChange = null) {
    this.canvas = canvas;
    this.onChange = onChange;
    this.cursor = 0;
    this.values = [];
    if (onChange) this.listen();
  }

  show(values, height, width, cell) {
    Object.assign(this, { values: [...values], height, width, cell });
    this.canvas.width = width * cell;
    this.canvas.height = height * cell;
    this.cursor = Math.min(this.cursor, values.length - 1);
    this.paint();
  }

  paint() {
    const pen = this.canvas.getContext("2d");
    pen.fillStyle = "#777";
    pen.fillRect(0, 0, this.canvas.width, this.canvas.height);
    this.values.forEach((value, unit) => {
      const shade = Math.round(255 * (1 - value));
      pen.fillStyle = `rgb(${shade},${shade},${shade})`;
      const gap = this.onChange ? 1 : 0;
      pen.fillRect((unit % this.width) * this.cell, Math.floor(unit / this.width) * this.cell, this.cell - gap, this.cell - gap);
    });
    if (this.onChange && document.activeElement === this.canvas) {
      pen.strokeStyle = "#2a6fdb";
      pen.lineWidth = 2;
      pen.strokeRect((this.cursor % this.width) * this.cell + 1, Math.floor(this.cursor / this.width) * this.cell + 1, this.cell - 3, this.cell - 3);
    }
  }

  set(unit, value) {
    if (unit < 0 || unit >= this.values.length || this.values[unit] === value) return;
    this.values[unit] = value;
    this.paint();
    this.onChange();
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    const x = Math.floor((event.clientX - box.left - 1) / (box.width - 2) * this.width);
    const y = Math.floor((event.clientY - box.top - 1) / (box.height - 2) * this.height);
    return x < 0 || y < 0 || x >= this.width || y >= this.height ? -1 : y * this.width + x;
  }

  listen() {
    let ink = null;
    this.canvas.addEventListener("pointerdown", (event) => {
      const unit = this.at(event);
      this.canvas.focus({ preventScroll: true });
      this.canvas.setPointerCapture(event.pointerId);
      ink = this.values[unit] > 0.5 ? 0 : 1;
      this.cursor = Math.max(unit, 0);
      this.set(unit, ink);
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (ink !== null) this.set(this.at(event), ink);
    });
    for (const end of ["pointerup", "pointercancel"]) this.canvas.addEventListener(end, () => { ink = null; });
    for (const change of ["focus", "blur"]) this.canvas.addEventListener(change, () => this.paint());
    this.canvas.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.width, ArrowDown: this.width };
      if (event.key in steps) {
        const next = this.cursor + steps[event.key];
        if (next >= 0 && next < this.values.length) this.cursor = next;
        this.paint();
      } else if (event.key === " " || event.key === "Enter") {
        this.set(this.cursor, this.values[this.cursor] > 0.5 ? 0 : 1);
      } else {
        return;
      }
      event.preventDefault();
    });
  }
}

export function picture(values, height, width, cell, label) {
  const canvas = document.createElement("canvas");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", label);
  new Grid(canvas).show(values, height, width, cell);
  return canvas;
}
