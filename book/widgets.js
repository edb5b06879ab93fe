/* Draws the Jupyter widgets of a page from the state that was saved when its notebook ran. There is no kernel: what is
   linked in the browser moves together, the rest stands still.

   The models and views are those of widgetsnbextension, the package that comes with ipywidgets (widgets-classes.js is
   its file). It is written for the classic notebook and asks for four things of it when it is loaded: define,
   requirejs, Jupyter.version, and the notebook's own output area. They are given to it here and taken away again. */
(function () {
  "use strict";
  var STATE = 'script[type="application/vnd.jupyter.widget-state+json"]';
  var VIEW = 'script[type="application/vnd.jupyter.widget-view+json"]';
  var here = document.currentScript.src;

  /* Load the classes; resolves to an object that holds every model and view by name. */
  function classes() {
    return new Promise(function (resolve, reject) {
      var before = { define: window.define, requirejs: window.requirejs, Jupyter: window.Jupyter };
      var made;
      function nothing() {}
      var page = { version: "6.5.0" };
      var notebook = { notebook: { container: { on: nothing } } };
      var area = { OutputArea: { prototype: { register_mime_type: nothing } } };
      window.define = function (_names, factory) { made = factory({ id: "widgets", uri: here }); };
      window.requirejs = function (names, ready) {
        if (names.length === 3) { ready(notebook, { on: nothing }, area); } // only load_ipython_extension asks for three
      };
      window.requirejs.config = nothing;
      window.Jupyter = page;
      var script = document.createElement("script");
      script.src = here.replace(/_static\/widgets\.js.*$/, "vendor/widgets-classes.js");
      script.onload = function () {
        if (made) { made.load_ipython_extension(); } // what it does in a notebook, and brings the styles
        Object.assign(window, before);
        if (made) { resolve(made); } else { reject(new Error("no widget classes in " + script.src)); }
      };
      script.onerror = function () { reject(new Error("cannot load " + script.src)); };
      document.head.appendChild(script);
    });
  }

  /* Formulas in labels: the classes call MathJax 2, the book has MathJax 3. */
  function typeset() {
    if (window.MathJax && !window.MathJax.Hub) {
      window.MathJax.Hub = {
        Queue: function (task) { if (window.MathJax.typesetPromise) { window.MathJax.typesetPromise([task[2]]); } }
      };
    }
  }

  /* An Output widget, outside of the notebook: its saved outputs, the richest form of each that a page can show. */
  function outputClasses(base) {
    class BookOutputModel extends base.DOMWidgetModel {
      defaults() {
        return Object.assign(super.defaults(), {
          _model_name: "OutputModel", _view_name: "OutputView", msg_id: "", outputs: []
        });
      }
    }
    class BookOutputView extends base.DOMWidgetView {
      render() {
        super.render();
        var place = this.el;
        (this.model.get("outputs") || []).forEach(function (output) {
          var data = output.data || {};
          var part = document.createElement("div");
          var plot = data["application/vnd.plotly.v1+json"];
          if (plot && window.rlcPlot) {
            window.rlcPlot(part, plot);
          } else if (data["text/html"]) {
            part.innerHTML = [].concat(data["text/html"]).join("");
          } else if (data["image/png"]) {
            part.appendChild(new Image()).src = "data:image/png;base64," + [].concat(data["image/png"]).join("");
          } else {
            part = document.createElement("pre");
            part.textContent = [].concat(data["text/plain"] || output.text || "").join("");
          }
          place.appendChild(part);
        });
        if (window.rlcDraw) { window.rlcDraw(place); }
      }
    }
    return { OutputModel: BookOutputModel, OutputView: BookOutputView };
  }

  /* What the models and views ask of a widget manager. */
  function Manager(saved, known) {
    var made = {};
    var manager = this;
    this.get_model = function (id) {
      if (!made[id]) {
        var entry = saved[id];
        made[id] = entry ? build(id, entry) : Promise.reject(new Error("no saved state for widget " + id));
      }
      return made[id];
    };
    function build(id, entry) {
      if (!known[entry.model_name]) { // a widget of another package: it needs its own code and a kernel
        var note = { text: "(Drawn here while the notebook runs.)" };
        entry = { model_name: "OutputModel", model_module: "@jupyter-widgets/output", state: { outputs: [note] } };
      }
      var Model = known[entry.model_name];
      var state = Object.assign({}, entry.state);
      (entry.buffers || []).forEach(function (buffer) {
        var bytes = Uint8Array.from(atob(buffer.data), function (c) { return c.charCodeAt(0); });
        known.put_buffers(state, [buffer.path], [new DataView(bytes.buffer)]);
      });
      return Model._deserialize_state(state, manager).then(function (attributes) {
        var model = new Model(attributes, { widget_manager: manager, model_id: id });
        model.name = entry.model_name;
        model.module = entry.model_module;
        return model;
      });
    }
    this.create_view = function (model, options) {
      var view = new known[model.get("_view_name")]({ model: model, options: options || {} });
      view.listenTo(model, "destroy", view.remove);
      return Promise.resolve(view.render()).then(function () { return view; });
    };
    this.has_model = function (id) { return id in saved; };
    this.callbacks = function () { return {}; };
    this.setViewOptions = function (options) { return options || {}; };
    this.resolve_url = function (url) { return Promise.resolve(url); };
    this.inline_sanitize = function (text) {
      var place = document.createElement("span");
      place.textContent = text;
      return place.innerHTML;
    };
  }

  function start() {
    var state = document.querySelector(STATE);
    if (!state || !document.querySelector(VIEW)) { return; }
    var saved = JSON.parse(state.textContent).state;
    typeset();
    classes().then(function (made) {
      var known = Object.assign({}, made, outputClasses(made));
      var manager = new Manager(saved, known);
      // Links live in no view: making their models is what makes them work.
      Object.keys(saved).forEach(function (id) {
        if (/LinkModel$/.test(saved[id].model_name)) { manager.get_model(id); }
      });
      document.querySelectorAll(VIEW).forEach(function (script) {
        var id = JSON.parse(script.textContent).model_id;
        if (!(id in saved)) { return; }
        var place = document.createElement("div");
        place.className = "rlc-widget";
        script.parentNode.insertBefore(place, script);
        manager.get_model(id).then(function (model) {
          return manager.create_view(model);
        }).then(function (view) {
          view.luminoWidget.constructor.attach(view.luminoWidget, place);
          name(place);
          place.dataset.drawn = "yes";
        });
      });
    });
  }

  /* A slider's handles have no name of their own: give them that of the label beside them. */
  function name(place) {
    place.querySelectorAll('[role="slider"]:not([aria-label])').forEach(function (handle) {
      var box = handle.closest(".jupyter-widgets");
      var label = box && box.querySelector("label");
      handle.setAttribute("aria-label", (label && label.textContent.trim()) || "value");
    });
  }

  if (document.readyState === "loading") { document.addEventListener("DOMContentLoaded", start); } else { start(); }
})();
