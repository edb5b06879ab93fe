/* Pictures side by side that are looked at, moved and clicked together. */

import { h } from "./dom.js";
import { LIGHT, SvgPen, pen } from "./paint.js";
import { Viewport } from "./viewport.js";

const STILL = 120; // ms without a move, after which the picture is drawn anew

export class Group {
  /* on: {pick(found), tell(found) → text, step(by, found) → found}; `kind` is the canvases' class. */
  constructor(kind, label, on) {
    Object.assign(this, { kind, label, on, shown: [], hovered: {}, theme: LIGHT, stills: [] });
    this.view = new Viewport(() => this.move());
    this.place = h("div", { class: "panels" });
    this.tip = h("div", { class: "tip", hidden: true, "aria-hidden": "true" });
    this.said = h("div", { class: "said", "aria-live": "polite" });
    this.element = h("div", {}, this.place, this.tip, this.said);
    this.canvases = [];
    this.watch = new ResizeObserver(() => this.redraw());
  }

  /* panels: [{title, picture, label}] */
  show(panels, theme, extra) {
    Object.assign(this, { shown: panels, theme, extra, hovered: {} });
    this.tip.hidden = true;
    while (this.canvases.length < panels.length) this.add();
    for (const [i, canvas] of this.canvases.entries()) {
      canvas.parentNode.hidden = i >= panels.length;
      if (i >= panels.length) continue;
      canvas.previousSibling.replaceChildren(...panels[i].title);
      canvas.setAttribute("aria-label", `${panels[i].label}. ${this.label}`);
    }
    this.place.style.setProperty("--columns", panels.length);
    this.paint();
  }

  add() {
    const canvas = h("canvas", { class: this.kind, tabindex: 0, role: "application" }), i = this.canvases.length;
    this.canvases.push(canvas);
    this.place.append(h("figure", {}, h("figcaption"), canvas));
    this.watch.observe(canvas);
    const at = (x, y) => this.shown[i]?.picture.at(x, y, this.view, canvas.clientWidth, canvas.clientHeight) || {};
    this.view.add(canvas, (x, y) => {
      const found = at(x, y);
      if (this.on.pick(found)) canvas.focus({ preventScroll: true });
    });
    canvas.addEventListener("pointermove", (event) => {
      if (event.buttons) return this.hover({});
      return this.hover(at(event.offsetX, event.offsetY), canvas, event.offsetX, event.offsetY);
    });
    canvas.addEventListener("pointerleave", () => this.hover({}));
    canvas.addEventListener("blur", () => this.hover({}));
    canvas.addEventListener("keydown", (event) => this.key(event, canvas, i));
  }

  key(event, canvas, i) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const by = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
    if (this.view.key(event)) event.preventDefault();
    else if (by) {
      event.preventDefault();
      const found = this.on.step(by, this.hovered, this.shown[i]?.picture);
      const dot = this.shown[i]?.picture.dot?.(found.edge, this.view, canvas.clientWidth, canvas.clientHeight);
      this.hover(found, canvas, ...(dot || [60, 20]));
      this.said.textContent = this.on.tell(found);
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.on.pick(this.hovered);
    } else if (event.key === "Escape") this.hover({});
  }

  hover(found, canvas, x, y) {
    const text = this.on.tell(found);
    this.tip.hidden = !text;
    if (text) {
      this.tip.textContent = text;
      const box = canvas.getBoundingClientRect(), root = this.element.offsetParent.getBoundingClientRect();
      const left = box.left - root.left + x + 14, most = root.width - this.tip.offsetWidth - 8;
      this.tip.style.left = `${Math.max(4, Math.min(left, most))}px`;
      this.tip.style.top = `${box.top - root.top + y + 16}px`;
    }
    if (found.edge === this.hovered.edge && found.problem === this.hovered.problem) return;
    this.hovered = found;
    this.redraw();
  }

  redraw() {
    if (!this.due) this.due = requestAnimationFrame(() => this.paint());
  }

  /* While it moves, what was drawn is moved: hundreds of dashed curves cannot be drawn 60 times a second everywhere. */
  move() {
    clearTimeout(this.rest);
    this.rest = setTimeout(() => this.redraw(), STILL);
    if (!this.due) this.due = requestAnimationFrame(() => this.shift());
  }

  shift() {
    this.due = 0;
    const { k, x, y } = this.view, part = k / this.drawn.k;
    this.shown.forEach((_, i) => {
      const { context, width, height } = pen(this.canvases[i]);
      context.fillStyle = this.theme.back;
      context.fillRect(0, 0, width, height);
      context.drawImage(this.stills[i], x - part * this.drawn.x, y - part * this.drawn.y, width * part, height * part);
    });
  }

  paint() {
    cancelAnimationFrame(this.due);
    clearTimeout(this.rest);
    this.due = 0;
    const { k, x, y } = this.view;
    this.drawn = { k, x, y };
    this.shown.forEach(({ picture }, i) => {
      const { context, width, height } = pen(this.canvases[i]);
      if (!width) return;
      picture.draw(context, this.view, this.theme, { width, height }, this.hovered.edge ?? this.hovered.problem, this.extra);
      const still = (this.stills[i] ||= document.createElement("canvas")), { canvas } = context;
      if (still.width !== canvas.width || still.height !== canvas.height) [still.width, still.height] = [canvas.width, canvas.height];
      still.getContext("2d").drawImage(canvas, 0, 0);
    });
  }

  /* All panels side by side as SVG text, in light colours and unmoved. */
  svg(width = 360, height = 460) {
    const whole = new SvgPen(width * this.shown.length, height + 26), still = { k: 1, to: (x, y) => [x, y] };
    this.shown.forEach(({ picture, label }, i) => {
      whole.shift(i * width, 26);
      picture.draw(whole, still, LIGHT, { width, height }, null);
      Object.assign(whole, { textAlign: "left", fillStyle: LIGHT.ink, font: "14px" });
      whole.fillText(label.slice(0, 60), 4, -8);
    });
    return whole.toString();
  }

  /* The same as PNG, two pixels for one. */
  async png() {
    const image = new Image();
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(this.svg())}`;
    await image.decode();
    const canvas = h("canvas", { width: 2 * image.width, height: 2 * image.height });
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    return new Promise((done) => canvas.toBlob(done));
  }

  end() {
    this.watch.disconnect();
    cancelAnimationFrame(this.due);
    clearTimeout(this.rest);
  }
}
