/* Pan and zoom of one or more canvases together: drag, pinch, Ctrl and wheel, double click, keys. */

export class Viewport {
  constructor(changed, most = 16) {
    Object.assign(this, { k: 1, x: 0, y: 0, changed, most, canvases: [], pointers: new Map() });
  }

  /* Where a place of the picture is seen. */
  to(x, y) { return [x * this.k + this.x, y * this.k + this.y]; }
  from(x, y) { return [(x - this.x) / this.k, (y - this.y) / this.k]; }

  reset() { this.set(1, 0, 0); }

  set(k, x, y) {
    this.k = Math.min(this.most, Math.max(1, k));
    const [width, height] = this.size();
    // The picture never leaves its frame.
    this.x = Math.min(0.25 * width, Math.max(width * (0.75 - this.k), x));
    this.y = Math.min(0.25 * height, Math.max(height * (0.75 - this.k), y));
    if (this.k === 1 && k <= 1 && x === 0 && y === 0) this.x = this.y = 0;
    for (const canvas of this.canvases) canvas.style.touchAction = this.k > 1 ? "none" : "pan-y";
    this.changed();
  }

  size() {
    const canvas = this.canvases[0];
    return canvas ? [canvas.clientWidth, canvas.clientHeight] : [1, 1];
  }

  zoom(factor, at = this.size().map((side) => side / 2)) {
    const k = Math.min(this.most, Math.max(1, this.k * factor)), part = k / this.k;
    this.set(k, at[0] - part * (at[0] - this.x), at[1] - part * (at[1] - this.y));
  }

  /* Listen to a canvas; `click` hears of a press that was no drag. */
  add(canvas, click) {
    this.canvases.push(canvas);
    canvas.style.touchAction = "pan-y";
    let moved = 0;
    const place = (event) => {
      const box = canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      if (!this.pointers.size) moved = 0;
      this.pointers.set(event.pointerId, place(event));
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      const before = this.pointers.get(event.pointerId);
      if (!before) return;
      const now = place(event), other = [...this.pointers].find(([id]) => id !== event.pointerId);
      this.pointers.set(event.pointerId, now);
      moved += Math.hypot(now[0] - before[0], now[1] - before[1]);
      if (moved < 4) return;
      if (other) {
        const distance = (point) => Math.hypot(point[0] - other[1][0], point[1] - other[1][1]) || 1;
        this.zoom(distance(now) / distance(before), [0, 1].map((i) => (now[i] + other[1][i]) / 2));
      } else {
        this.set(this.k, this.x + now[0] - before[0], this.y + now[1] - before[1]);
      }
    });
    const up = (event) => {
      if (this.pointers.delete(event.pointerId) && event.type === "pointerup" && moved < 4) click(...place(event));
    };
    canvas.addEventListener("pointerup", up);
    canvas.addEventListener("pointercancel", up);
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      this.zoom(2 ** (-event.deltaY / 200), place(event));
    }, { passive: false });
    canvas.addEventListener("dblclick", (event) => this.zoom(2, place(event)));
  }

  /* Whether a key was one of its own: + − 0, and Shift with arrows. */
  key(event) {
    const step = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] }[event.key];
    if (event.key === "+" || event.key === "=") this.zoom(1.5);
    else if (event.key === "-") this.zoom(1 / 1.5);
    else if (event.key === "0") this.reset();
    else if (step && event.shiftKey) this.set(this.k, this.x + step[0], this.y + step[1]);
    else return false;
    return true;
  }
}
