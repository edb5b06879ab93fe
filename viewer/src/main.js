/* One viewer, three places: a cell of JupyterLab (anywidget calls `render`), a page of the book and a file of its own
   (places with the class rlc-viewer, each with its document in a script element of JSON). */

import { Viewer } from "./viewer.js";

/* In JupyterLab: what is missing is asked of the kernel. */
function render({ model, el }) {
  const viewer = new Viewer(el, model.get("data"), {
    view: model.get("view"),
    ask: (message) => model.send(message),
    keep: (view) => {
      model.set("view", view);
      model.save_changes();
    },
  });
  // The trait "view" is only written: its echo of an earlier choice may come after a later choice was made.
  const hear = (message) => viewer.hear(message);
  model.on("msg:custom", hear);
  return () => {
    model.off("msg:custom", hear);
    viewer.end();
  };
}

/* On a page: draw every place within `root` that is not drawn yet. */
export function draw(root) {
  root.querySelectorAll(".rlc-viewer:not([data-drawn])").forEach((place) => {
    const told = JSON.parse(place.querySelector('script[type="application/json"]').textContent);
    new Viewer(place, told, { view: told.view });
    place.dataset.drawn = "yes";
  });
}

export default { render };
export { Viewer };

if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", () => draw(document));
else draw(document);
