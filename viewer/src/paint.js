/* Colours, canvases as sharp as the screen, and a pen that writes SVG in a canvas's place. */

export const LIGHT = {
  back: "#ffffff", ink: "#222222", quiet: "#595959", line: "#d4d4d4", node: "#ffffff", rim: "#6b6b6b",
  positive: "#d55e00", negative: "#0072b2", none: "#ececec", chosen: "#000000",
  diverging: ["#00446b", "#0072b2", "#ffffff", "#d55e00", "#7a3600"],
};
export const DARK = {
  back: "#14181f", ink: "#e8e8e8", quiet: "#b3bac4", line: "#3a424e", node: "#232a34", rim: "#a0a8b4",
  positive: "#ff8a3d", negative: "#56b4e9", none: "#2b323c", chosen: "#ffffff",
  diverging: ["#b5e0ff", "#3d9bd6", "#14181f", "#e8762c", "#ffc79e"],
};
export const FONT = '"Source Sans Pro","Segoe UI",Helvetica,Arial,sans-serif';

const rgb = (colour) => [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));

/* From −1 to 1 to [r, g, b]. */
export function diverging(theme) {
  const stops = theme.diverging.map(rgb);
  return (value) => {
    const place = Math.min(3.9999, Math.max(0, (value + 1) * 2)), stop = Math.floor(place), part = place - stop;
    return stops[stop].map((from, i) => Math.round(from + part * (stops[stop + 1][i] - from)));
  };
}

/* Whether the page around `host` is dark: the book and JupyterLab say so, else the reader's own setting does. */
export function isDark(host) {
  const page = document.documentElement.dataset.theme, lab = document.body.dataset.jpThemeLight;
  if (host.dataset.theme) return host.dataset.theme === "dark";
  if (page === "dark" || page === "light") return page === "dark";
  if (lab) return lab === "false";
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

/* Calls `changed` when that may have changed; returns what ends it. */
export function watchTheme(changed) {
  const media = matchMedia("(prefers-color-scheme: dark)"), watch = new MutationObserver(changed);
  watch.observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
  watch.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });
  media.addEventListener("change", changed);
  return () => {
    watch.disconnect();
    media.removeEventListener("change", changed);
  };
}

/* The pen of a canvas, with its size in CSS pixels. */
export function pen(canvas) {
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return { context, width, height };
}

/* What the pictures ask of a canvas's context, written down as SVG. */
export class SvgPen {
  constructor(width, height) {
    Object.assign(this, { width, height, parts: [], path: "", dash: [], globalAlpha: 1, lineWidth: 1, textAlign: "left" });
    this.offset = [0, 0];
  }

  shift(x, y) { this.offset = [x, y]; }
  at(x, y) { return `${(x + this.offset[0]).toFixed(1)} ${(y + this.offset[1]).toFixed(1)}`; }
  beginPath() { this.path = ""; }
  moveTo(x, y) { this.path += `M${this.at(x, y)}`; }
  lineTo(x, y) { this.path += `L${this.at(x, y)}`; }
  quadraticCurveTo(a, b, x, y) { this.path += `Q${this.at(a, b)} ${this.at(x, y)}`; }
  arc(x, y, r) { this.path += `M${this.at(x - r, y)}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0`; }
  rect(x, y, w, h) { this.path += `M${this.at(x, y)}h${w}v${h}h${-w}z`; }
  setLineDash(dash) { this.dash = dash; }
  save() {}
  restore() {}
  clip() {}
  clearRect() {}
  fillRect(x, y, w, h) { this.beginPath(); this.rect(x, y, w, h); this.fill(); }
  put(attributes) {
    const dash = this.dash.length ? ` stroke-dasharray="${this.dash.join(" ")}"` : "";
    this.parts.push(`<path d="${this.path}" opacity="${this.globalAlpha.toFixed(2)}" ${attributes}${dash}/>`);
  }
  fill() { this.put(`fill="${this.fillStyle}"`); }
  stroke() { this.put(`fill="none" stroke="${this.strokeStyle}" stroke-width="${this.lineWidth.toFixed(2)}"`); }
  fillText(text, x, y) {
    const anchor = { left: "start", right: "end", center: "middle" }[this.textAlign];
    const [size] = /[\d.]+px/.exec(this.font), [left, top] = this.at(x, y).split(" ");
    const safe = text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
    this.parts.push(`<text x="${left}" y="${top}" font-size="${size}" text-anchor="${anchor}" fill="${this.fillStyle}">${safe}</text>`);
  }
  measureText(text) { return { width: 6 * text.length }; }
  toString() {
    const font = FONT.replace(/"/g, "'");
    return `<svg xmlns="http://www.w3.org/2000/svg" width="${this.width}" height="${this.height}" font-family="${font}">${this.parts.join("")}</svg>\n`;
  }
}
