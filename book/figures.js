/* Draws every figure that rlcircuits.display.show left on the page, with the book's own copy of plotly.js.
   plotly.js (4.8 MB) is fetched only by pages that have a figure. */
(function () {
  "use strict";
  function draw(root) {
    root.querySelectorAll(".rlc-plot:not([data-drawn])").forEach(function (place) {
      place.dataset.drawn = "soon";
      var source = place.parentNode.querySelector('script[type="application/json"]');
      var figure = JSON.parse(source.textContent);
      var config = Object.assign({ responsive: true, displaylogo: false }, figure.config);
      var note = place.querySelector(".rlc-alt");
      var target = document.createElement("div");
      place.appendChild(target);
      window.Plotly.newPlot(target, figure.data, figure.layout, config).then(
        function () { if (note) { note.remove(); } place.dataset.drawn = "yes"; },
        function (error) { target.remove(); place.dataset.drawn = "no"; throw error; }
      );
    });
  }

  /* Draw the figures within an element; loads plotly.js the first time there is one. */
  var loading;
  window.rlcDraw = function (root) {
    if (!root.querySelector(".rlc-plot")) { return; }
    loading = loading || new Promise(function (resolve, reject) {
      var script = document.createElement("script");
      script.src = (document.documentElement.dataset.content_root || "./") + "vendor/plotly.min.js";
      script.onload = resolve;
      script.onerror = reject;
      document.head.appendChild(script);
    });
    loading.then(function () { draw(root); });
  };
  document.addEventListener("DOMContentLoaded", function () { window.rlcDraw(document); });
})();
