// Tables that can be sorted, and plots. Without scripts the page reads the same, in the order of the study, without plots.
(function () {
  "use strict";
  const root = document.documentElement;

  // --- tables: a header is a button; a third press goes back to the order of the study. On phones, a list of choices. ---
  const NEXT = { none: "ascending", ascending: "descending", descending: "none" };

  function sortable(table) {
    const body = table.tBodies[0], rows = Array.from(body.rows), heads = Array.from(table.tHead.rows[0].cells);
    const names = heads.map((head) => head.textContent);
    const status = table.parentNode.appendChild(document.createElement("p"));
    status.className = "hidden";
    status.setAttribute("role", "status");
    const select = document.createElement("select");

    function sort(column, direction) {
      const number = heads[column].classList.contains("num"), sign = direction === "descending" ? -1 : 1;
      const found = rows.map((row, order) => {
        const cell = row.cells[column], text = cell.dataset.value;
        const empty = text === undefined || text === "";
        return { row, order, empty, value: number ? Number(text) : text };
      });
      const collator = new Intl.Collator(undefined, { numeric: true });
      found.sort((a, b) => {
        if (direction === "none") return a.order - b.order;
        if (a.empty || b.empty) return Number(a.empty) - Number(b.empty) || a.order - b.order;
        const way = number ? a.value - b.value : collator.compare(a.value, b.value);
        return sign * way || a.order - b.order;
      });
      body.append(...found.map((one) => one.row));
      heads.forEach((head, i) => head.setAttribute("aria-sort", i === column ? direction : "none"));
      select.value = direction === "none" ? "" : column + " " + direction;
      const by = "Sorted by " + names[column] + ", " + direction;
      status.textContent = direction === "none" ? "In the order of the study" : by;
    }

    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = names[column];
      const paper = document.createElement("span"); // a button is not printed where a table's head comes again on the next page
      paper.className = "paper";
      paper.textContent = names[column];
      head.replaceChildren(button, paper);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => sort(column, NEXT[head.getAttribute("aria-sort")]));
      const words = head.classList.contains("num") ? ["lowest first", "highest first"] : ["A to Z", "Z to A"];
      ["ascending", "descending"].forEach((direction, i) => {
        select.append(new Option(names[column] + ", " + words[i], column + " " + direction));
      });
    });
    select.prepend(new Option("Order of the study", ""));
    select.value = "";
    select.addEventListener("change", () => {
      const [column, direction] = select.value ? select.value.split(" ") : [0, "none"];
      sort(Number(column), direction);
    });
    const label = document.createElement("label");
    label.className = "sort";
    label.append("Sort by ", select);
    (table.closest(".tall") || table).before(label);
  }
  document.querySelectorAll("table[data-sortable]").forEach(sortable);

  // --- plots: library and figures are compressed in the page ---
  const packed = document.getElementById("figures");
  if (!packed) return;
  let figures = {};
  const axes = {};
  const PAGE = 860; // pixels of a plot that fits on a sheet of A4 with its heading
  let printing = false;

  async function inflate(id) {
    const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }

  // plotly cannot read CSS variables, so text colours are set again when the theme changes, and for paper
  function colours() {
    if (printing) return { text: "#1a1d21", page: "#fff", line: "#e3e6ea" };
    const css = getComputedStyle(root), get = (name) => css.getPropertyValue(name).trim();
    return { text: get("--text"), page: get("--page"), line: get("--line") };
  }

  function laidOut(id, layout, box) {
    const c = colours(), out = { ...layout, font: { ...layout.font, color: c.text } };
    const hover = layout.hoverlabel || {};
    out.hoverlabel = { ...hover, bgcolor: c.page, bordercolor: c.line, font: { ...hover.font, color: c.text } };
    for (const [axis, type] of Object.entries(axes[id] || {})) out[axis] = { ...layout[axis], type };
    if (printing) {
      const width = box.closest(".small") ? 320 : 670;
      Object.assign(out, { width, height: Math.min(layout.height, PAGE), autosize: false });
    }
    return out;
  }

  // on a logarithmic axis, the lower edge of a band that reaches below zero stands at the smallest value there is
  function positive(trace, least) {
    return { ...trace, y: trace.y.map((value) => (value === null || value > 0 ? value : least)) };
  }

  function draw(id) {
    const box = document.getElementById(id), figure = figures[id];
    let data = figure.data;
    if ((axes[id] || {}).yaxis === "log") {
      const values = data.flatMap((trace) => Array.from(trace.y)).filter((value) => value > 0);
      const least = values.reduce((a, b) => Math.min(a, b), Infinity);
      data = data.map((trace) => positive(trace, least));
    }
    return Plotly.react(box, data, laidOut(id, figure.layout, box), {
      displayModeBar: false, responsive: true, scrollZoom: false,
    });
  }
  const drawAll = () => Object.keys(figures).forEach(draw);

  function pressed(button) {
    return button.getAttribute("aria-pressed") === "true";
  }
  function listen() {
    document.querySelectorAll(".keys button").forEach((button) => {
      button.addEventListener("click", () => {
        const arm = button.dataset.arm, on = !pressed(button);
        document.querySelectorAll(".keys button").forEach((other) => {
          if (other.dataset.arm === arm) other.setAttribute("aria-pressed", on);
        });
        Object.values(figures).forEach(({ data }) => {
          data.forEach((trace) => { if (trace.legendgroup === arm) trace.visible = on; });
        });
        drawAll();
      });
    });
    document.querySelectorAll(".switch button").forEach((button) => {
      button.addEventListener("click", () => {
        const { plot, axis, type } = button.dataset;
        button.parentNode.querySelectorAll("button").forEach((other) => {
          other.setAttribute("aria-pressed", other === button);
        });
        axes[plot] = { ...axes[plot], [axis]: type };
        draw(plot);
      });
    });
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
    window.addEventListener("beforeprint", () => { printing = true; drawAll(); });
    window.addEventListener("afterprint", () => { printing = false; drawAll(); });
  }

  async function start() {
    const [library, json] = await Promise.all([inflate("plotly"), inflate("figures")]);
    const script = document.createElement("script");
    script.textContent = library;
    document.head.append(script);
    figures = JSON.parse(json);
    for (const id of Object.keys(figures)) {
      document.getElementById(id).replaceChildren();
      await draw(id);
    }
    listen();
    root.dataset.plots = "drawn";
  }
  if (typeof DecompressionStream === "undefined") root.classList.add("noplots");
  else start().catch((error) => { root.classList.add("noplots"); throw error; });
})();
