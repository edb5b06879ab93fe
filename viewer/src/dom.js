/* Elements made of text nodes: nothing that a model or a data set wrote is ever read as markup. */

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat(2).filter((child) => child != null && child !== false));
  return element;
}

/* Three significant digits, with a minus sign that no line breaks after. */
export function digits(value) {
  if (!Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const rounded = Number(value.toPrecision(3));
  const size = Math.abs(rounded);
  const text = size < 1e-4 || size >= 1e6 ? rounded.toExponential() : String(rounded);
  return text.replace("e+", "e").replace(/-/g, "−");
}

/* Options of a select as [value, text]; leaves it alone when nothing changed. */
export function fill(select, options, value) {
  const now = [...select.options].map((option) => [option.value, option.text]);
  if (JSON.stringify(now) !== JSON.stringify(options)) {
    select.replaceChildren(...options.map(([name, text]) => h("option", { value: name }, text)));
  }
  select.value = value;
}
