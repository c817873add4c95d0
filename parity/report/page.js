"use strict";
(() => {
  const data = JSON.parse(document.getElementById("result").textContent);
  // Comparisons travel column by column; a column is a list, one value for all, or positions in a table of its values.
  const valueAt = (column, index) => "all" in column ? column.all : "at" in column ? column.table[column.at[index]] : column.list[index];
  const comparisons = Object.values(data.gates).flatMap(({ comparisons: { count, columns } }) => Array.from({ length: count },
    (_, index) => Object.fromEntries(Object.entries(columns).map(([field, column]) => [field, valueAt(column, index)]))));
  const training = new Set(data.training.gates), parts = new Set(data.training.parts);
  const unique = (values) => [...new Set(values)];

  // Invisible characters are written out, as everywhere else in the report.
  const printable = (text) => String(text).replace(/[\p{C}\p{Zl}\p{Zp}]/gu, (character) => {
    const code = character.codePointAt(0);
    return code < 256 ? "\\x" + code.toString(16).padStart(2, "0") : "\\u" + code.toString(16).padStart(4, "0");
  });
  const path = (text) => printable(text) || "(model)";
  // Where a comparison was made: a path, or what stands for one. As in summary.place.
  const place = (row, side) => {
    const other = row[side === "port" ? "reference" : "port"];
    if (row[side] || !training.has(row.gate) || row.quantity.startsWith("gradient")) return path(row[side]);
    if (row.gate === "convergence") return other ? "-" : "(all runs)";
    return parts.has(row.layer) ? printable(row.layer) : "(training run)";
  };
  // "nan" and "inf" travel as text, because JSON has no such numbers.
  const finite = (value) => typeof value === "number";
  const number = (value) => value === null ? "-" : !finite(value) ? String(value) : value === 0 ? "0"
    : value.toExponential(1).replace(".0e", "e").replace(/e([+-])(\d)$/, "e$10$2");
  const passes = (row) => row.status === "pass";
  const used = (row) => !finite(row.error) ? (passes(row) ? 0 : Infinity) : row.error === 0 ? 0
    : !finite(row.limit) ? (passes(row) ? 0 : Infinity) : row.limit > 0 ? row.error / row.limit : Infinity;
  const percent = (value) => value === Infinity ? "over" : value === 0 ? "0 %" : value < 1
    ? Number((100 * value).toPrecision(2)) + " %" : (value < 1e4 ? Number(value.toPrecision(3)).toLocaleString("en") : number(value)) + " ×";

  // Text only ever enters the document as text nodes.
  function element(tag, properties = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name in node) node[name] = value; else node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  }

  // ---- tables: search, filters, sorting, a first page ----

  const PAGE = 200;

  function table(root, { label, columns, rows, filters = [], preset = {}, failing = () => false }) {
    if (!rows.length) {
      root.append(element("p", { className: "note" }, "None."));
      return null;
    }
    // Written out when somebody searches, because there may be many thousands.
    const texts = new Map();
    const textOf = (row) => {
      if (!texts.has(row)) texts.set(row, columns.map((column) => column.text(row)).join("\n").toLowerCase());
      return texts.get(row);
    };
    const search = element("input", { type: "search", placeholder: "Search " + rows.length.toLocaleString("en") + " rows",
      "aria-label": "Search " + label });
    const selects = filters.map(({ name, value }) => {
      const options = unique(rows.map(value).flat());
      const select = element("select", { "aria-label": name }, element("option", { value: "" }, "all " + name),
        ...options.map((option) => element("option", { value: option }, printable(option) || "none")));
      if (preset[name] !== undefined && options.includes(preset[name])) select.value = preset[name];
      return { name, select, value, options };
    });
    const count = element("span", { className: "muted", role: "status" });
    const body = element("tbody");
    const more = element("button", { type: "button" });
    let order = null, descending = false, everything = false;
    const heads = columns.map((column, index) => {
      const button = element("button", { type: "button" }, column.name);
      const head = element("th", { className: column.kind === "number" ? "number" : "" }, button);
      button.addEventListener("click", () => {
        descending = order === index ? !descending : column.kind === "number";
        order = index;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        draw();
      });
      return head;
    });

    function draw() {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const kept = rows.filter((row) => words.every((word) => textOf(row).includes(word))
        && selects.every(({ select, value }) => select.value === "" || [value(row)].flat().includes(select.value)));
      if (order !== null) {
        const key = columns[order].key || columns[order].text;
        kept.sort((left, right) => {
          const [a, b] = [key(left), key(right)];
          const compared = typeof a === "number" && typeof b === "number" ? (a === b ? 0 : a - b)
            : String(a).localeCompare(String(b), "en", { numeric: true });
          return descending ? -compared : compared;
        });
      }
      const shown = everything ? kept : kept.slice(0, PAGE);
      body.replaceChildren(...shown.map((row) => element("tr", { className: failing(row) ? "failing" : "" },
        ...columns.map((column) => element("td", { className: column.kind || "" },
          ...(column.nodes ? column.nodes(row) : [column.text(row)]))))));
      count.textContent = kept.length === rows.length ? rows.length.toLocaleString("en") + " rows"
        : kept.length.toLocaleString("en") + " of " + rows.length.toLocaleString("en") + " rows";
      more.hidden = shown.length === kept.length;
      more.textContent = "Show all " + kept.length.toLocaleString("en");
    }

    search.addEventListener("input", draw);
    selects.forEach(({ select }) => select.addEventListener("change", draw));
    more.addEventListener("click", () => { everything = true; draw(); });
    root.append(element("div", { className: "filters" }, search, ...selects.filter(({ options }) => options.length > 1)
      .map(({ select }) => select), count),
      element("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": label },
        element("table", {}, element("thead", {}, element("tr", {}, ...heads)), body)), more);
    draw();
    // Shows what a text and options of the filters select.
    return (text, chosen = {}) => {
      search.value = text;
      selects.forEach(({ name, select }) => { select.value = chosen[name] ?? ""; });
      draw();
    };
  }

  // A path may break after its separators.
  const code = (text, className = "") => element("code", { className }, ...text.split(/(?<=[./])/).flatMap((part) => [part, element("wbr")]));
  const paths = (row) => [code(place(row, "port")), element("br"), code(place(row, "reference"), "muted")];
  const shape = (value) => value === null ? "-" : "(" + value.join(", ") + ")";
  const columns = [
    { name: "Layer (port, reference)", kind: "path", text: (row) => place(row, "port") + "\n" + place(row, "reference"), nodes: paths,
      key: (row) => row.order },
    { name: "Quantity", text: (row) => printable(row.quantity) },
    { name: "Case", text: (row) => printable(row.case) },
    { name: "Precision", text: (row) => printable(row.precision) },
    { name: "Status", kind: "nowrap", text: (row) => row.status },
    { name: "Error", kind: "number", text: (row) => number(row.error), key: (row) => finite(row.error) ? row.error : Infinity },
    { name: "Limit", kind: "number", text: (row) => number(row.limit), key: (row) => finite(row.limit) ? row.limit : Infinity },
    { name: "Of limit", kind: "number", text: (row) => percent(used(row)), key: used },
    { name: "Reading", text: (row) => row.reading },
    { name: "Mode", text: (row) => printable(row.mode) },
    { name: "Gate", text: (row) => printable(row.gate) },
    { name: "Reference's own", kind: "number", text: (row) => number(row.reference_error),
      key: (row) => finite(row.reference_error) ? row.reference_error : -1 },
    { name: "Peak", kind: "number", text: (row) => number(row.peak), key: (row) => finite(row.peak) ? row.peak : Infinity },
    { name: "Shape", kind: "nowrap", text: (row) => shape(row.shape) },
    { name: "Tolerance", kind: "nowrap", text: (row) => printable(row.tolerance) },
    { name: "Detail", kind: "text", text: (row) => printable(row.detail) },
  ];
  const verdictOf = (row) => passes(row) ? ["passed", row.status] : ["not passed", row.status];
  const listed = table(document.getElementById("comparisons"), {
    label: "comparisons", columns, rows: comparisons, failing: (row) => !passes(row),
    filters: [
      { name: "cases", value: (row) => row.case }, { name: "gates", value: (row) => row.gate }, { name: "readings", value: (row) => row.reading },
      { name: "modes", value: (row) => row.mode }, { name: "precisions", value: (row) => row.precision },
      { name: "outcomes", value: verdictOf },
    ],
    preset: comparisons.some((row) => !passes(row)) ? { outcomes: "not passed" } : { gates: "layers" },
  });
  table(document.getElementById("constants"), {
    label: "constants", failing: (row) => !passes(row), rows: comparisons.filter((row) => row.gate === "constants"),
    columns: columns.filter(({ name }) => !["Gate", "Reading", "Mode"].includes(name)),
  });
  table(document.getElementById("weights"), {
    label: "weight map", rows: data.weights, filters: [{ name: "layouts", value: (row) => row.layout }],
    columns: [
      { name: "Port", kind: "path", text: (row) => printable(row.name), nodes: (row) => [code(printable(row.name))] },
      { name: "Checkpoint key", kind: "path", text: (row) => printable(row.key), nodes: (row) => [code(printable(row.key))] },
      { name: "Shape", kind: "nowrap", text: (row) => shape(row.shape), key: (row) => row.shape.reduce((a, b) => a * b, 1) },
      { name: "Layout", text: (row) => printable(row.layout) },
      { name: "SHA-256", kind: "nowrap", text: (row) => printable(row.sha256),
        nodes: (row) => [element("code", { title: printable(row.sha256) }, printable(row.sha256).slice(0, 12))] },
      { name: "Note", kind: "text", text: (row) => printable(row.note) },
    ],
  });

  document.querySelectorAll(".list-case").forEach((button) => button.addEventListener("click", () => {
    listed("", { cases: button.dataset.case, gates: button.dataset.gate });
    document.getElementById("comparisons-heading").scrollIntoView();
  }));

  // ---- what the figures share ----

  const ORDER = ["float64", "float32", "bfloat16"];
  const READINGS = ["isolated", "block", "accumulated", "state"];
  const ranked = (names, known) => [...known.filter((name) => names.includes(name)), ...names.filter((name) => !known.includes(name)).sort()];
  const culprits = new Set(data.culprits);
  const byId = (id) => document.getElementById(id);

  // plotly reads a little HTML in its texts.
  const escaped = (text) => printable(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  const colourName = (precision) => ORDER.includes(precision) ? precision : "other";
  const coarse = () => matchMedia("(pointer: coarse)").matches;
  const isNarrow = (figure) => figure.clientWidth < 560;

  // The logarithmic axis of some rows, with places below it for exact zeros and above it for what is no number.
  function scale(rows, [least, largest]) {
    const positive = rows.flatMap((row) => [row.error, row.limit, row.reference_error]).filter((value) => finite(value) && value > 0);
    const low = Math.floor(Math.log10(positive.reduce((a, b) => Math.min(a, b), least)));
    const high = Math.ceil(Math.log10(positive.reduce((a, b) => Math.max(a, b), largest)));
    const FLOOR = 10 ** (low - 1), CEILING = 10 ** (high + 1);
    return {
      low, high, FLOOR, CEILING,
      height: (value) => value === null || value === undefined ? null : !finite(value) ? CEILING : value === 0 ? FLOOR : value,
      errorHeight: (row) => !finite(row.error) ? CEILING : row.error === 0 ? FLOOR : row.error,
      axis(narrow, zero, none) {
        const exponents = [];
        for (let power = low; power <= high; power += narrow || high - low > 10 ? 2 : 1) exponents.push(power);
        return { type: "log", range: [zero ? low - 1.5 : low - 0.3, none ? high + 1.5 : high + 0.3], gridcolor: colour("line"), zeroline: false, fixedrange: narrow,
          tickvals: [...exponents.map((power) => 10 ** power), ...(zero ? [FLOOR] : []), ...(none ? [CEILING] : [])],
          ticktext: [...exponents.map((power) => "1e" + power), ...(zero ? ["0"] : []), ...(none ? ["none"] : [])] };
      },
      edges(zero, none) {
        return [...(zero ? [FLOOR] : []), ...(none ? [CEILING] : [])].map((y) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y,
          line: { color: colour("muted"), width: 1, dash: "dot" } }));
      },
    };
  }

  const remarks = (zero, none, failed, ...more) => [
    zero ? "An exact zero has no place on a logarithmic axis: it is drawn at the bottom, on the line marked 0, with an open triangle." : "",
    none ? "Missing and non-finite results are drawn at the top, on the line marked none." : "",
    failed ? "Crosses did not pass." : "", ...more,
  ].filter(Boolean).join(" ");

  // Bad is red and crossed, an exact zero an open triangle, whatever the series.
  const markers = (rows, { color, dot, symbol = "circle", cross = 11 }) => ({ opacity: 1, line: { width: 0 }, color: rows.map((row) => passes(row) ? color : colour("bad")),
    size: rows.map((row) => !passes(row) ? cross : row.error === 0 ? 8 : dot),
    symbol: rows.map((row) => !passes(row) ? "x" : row.error === 0 ? "triangle-down-open" : symbol) });

  const layoutOf = (figure, more) => {
    const font = getComputedStyle(document.body).fontFamily, text = colour("muted");
    return { hovermode: "closest", dragmode: coarse() ? false : "zoom", paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: font, size: 12, color: text }, showlegend: false,
      modebar: { bgcolor: "rgba(0,0,0,0)", color: text, activecolor: colour("text") },
      hoverlabel: { align: "left", bgcolor: colour("panel"), bordercolor: colour("line"), font: { family: font, color: colour("text"), size: 12 } }, ...more };
  };
  const show = (figure, traces, layout) => Plotly.react(figure, traces, layoutOf(figure, layout), { responsive: true, displaylogo: false, displayModeBar: "hover",
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] });

  const redraws = [];
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraws.forEach((redraw) => redraw()));

  // Pointing at a figure, or arrow keys in it, read one entry; Enter or a click lists its comparisons.
  function reader(figure, readout, { count, read, list = null }) {
    let at = null;
    const select = (index) => {
      if (!count()) return;
      at = Math.max(0, Math.min(count() - 1, index));
      readout.replaceChildren(...read(at));
    };
    const open = () => {
      if (at === null || !list || !listed) return;
      list(at);
      byId("comparisons-heading").scrollIntoView();
    };
    figure.on("plotly_hover", (event) => { if (event.points[0].customdata !== undefined) select(event.points[0].customdata); });
    figure.on("plotly_click", (event) => { select(event.points[0].customdata); if (!coarse()) open(); });
    figure.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
      if (event.key === "Enter") open();
      else if (step === undefined) return;
      else {
        select((at ?? (step > 0 ? -1 : count())) + step);
        const shown = figure.data.flatMap((trace, curveNumber) => trace.customdata
          ? trace.customdata.map((index, pointNumber) => ({ curveNumber, pointNumber, index })) : []).filter(({ index }) => index === at);
        if (shown.length) Plotly.Fx.hover(figure, [shown[0]]);
      }
      event.preventDefault();
    });
    return () => { at = null; readout.textContent = ""; };
  }

  // Choice of one value: buttons for a few, a list for many. Names of buttons are unique in the page, legends need not be.
  function choices(legend, values, chosen, choose, name = legend) {
    if (values.length < 2) return [];
    if (values.length > 4) {
      const select = element("select", { name }, ...values.map((value) => element("option", { value, selected: chosen === value },
        printable(value) || "none")));
      select.addEventListener("change", () => choose(select.value));
      return [element("label", { className: "choice" }, element("span", { className: "muted" }, legend), select)];
    }
    return [element("fieldset", {}, element("legend", {}, legend), ...values.map((value) => {
      const input = element("input", { type: "radio", name, checked: chosen === value });
      input.addEventListener("change", () => choose(value));
      return element("label", {}, input, printable(value) || "no " + legend.toLowerCase());
    }))];
  }

  function toggles(hidden, draw, shown) {
    return element("fieldset", {}, element("legend", {}, "Show"), ...shown.map(({ key, label, kind = "", color = "muted" }) => {
      const input = element("input", { type: "checkbox", checked: true });
      input.addEventListener("change", () => { hidden[input.checked ? "delete" : "add"](key); draw(); });
      return element("label", {}, input, element("span", { className: "swatch " + kind, style: "border-top-color: var(--" + color + ")" }), label);
    }));
  }

  const about = (name, row) => printable(name) + ": "
    + (finite(row.error) ? number(row.error) + " of " + number(row.limit) : row.status)
    + (row.reference_error === null ? "" : ", reference's own " + number(row.reference_error)) + (passes(row) ? "" : "  ✗ " + row.status);
  const title = ({ row }) => path(row.port) + (row.quantity === "output" || row.quantity === "gradient" ? "" : " · " + printable(row.quantity));
  const clipped = (text) => text.length > 60 ? "…" + text.slice(-59) : text;

  // One label where a new part of the model begins; its numbered repetitions where there is room.
  function ticks(entries, width) {
    const chosen = [];
    const room = entries.length / Math.max(4, width / 30);
    const numbered = (names) => 1 + names.findIndex((name) => /^\d+$/.test(name));
    for (const depth of [() => 1, numbered]) {
      let last = null;
      entries.forEach((entry, index) => {
        const names = path(entry.row.port).split(".");
        const prefix = names.slice(0, depth(names) || 1).join(".");
        if (prefix !== last && chosen.every((tick) => Math.abs(tick.index - index) >= room)) chosen.push({ index, prefix });
        last = prefix;
      });
    }
    chosen.sort((a, b) => a.index - b.index);
    return { tickvals: chosen.map(({ index }) => index),
      ticktext: chosen.map(({ prefix }) => escaped(prefix.length > 20 ? prefix.slice(0, 19) + "…" : prefix)) };
  }

  // Errors along the model: entries {row, by: {series: row}} against their position, one curve for each series.
  function profile({ figure, readout, note, rows, series, collect, hidden, own, marked, apart = () => false, limitShape = "linear" }) {
    const { low, height, errorHeight, axis, edges } = scale(rows, [1e-16, 1e-3]);
    let entries = [];
    const names = (entry) => series.filter(({ key }) => entry.by[key]);
    const hover = (entry) => "<b>" + escaped(clipped(title(entry))) + "</b><br>" + escaped(clipped(path(entry.row.reference))) + "<br>"
      + names(entry).map(({ key, label }) => escaped(about(label, entry.by[key]))).join("<br>");

    function traces() {
      const made = [], dot = isNarrow(figure) ? 3.5 : 5;
      for (const { key, color: colorName, symbol, owner } of series.filter((one) => !hidden.has(one.key))) {
        const points = entries.map((entry, index) => ({ entry, index, row: entry.by[key] })).filter(({ row }) => row);
        if (!points.length) continue;
        const color = colour(colorName);
        const x = points.map(({ index }) => index);
        const line = (values, more) => made.push({ x, y: points.map((point) => height(values(point))), type: "scatter",
          hoverinfo: "skip", showlegend: false, ...more });
        if (!hidden.has("limits")) {
          line(({ row }) => row.limit, { mode: "lines", line: { color, width: 1.2, dash: "dot", shape: limitShape }, opacity: 0.8, name: key + " limit" });
        }
        // Zeros, missing numbers and what is no error of its own kind stand apart: joined to the curve they would draw a
        // slope that is not there.
        const curve = (values, more) => line(values, { mode: "lines", connectgaps: false,
          y: points.map((point) => finite(values(point)) && values(point) > 0 && !apart(point.row) ? values(point) : null), ...more });
        const theirs = (point) => own(point, owner);
        if (!hidden.has("own") && points.some((point) => theirs(point) !== null)) {
          curve(theirs, { opacity: 0.4, line: { color, width: 1.2, dash: "dash" }, name: key + ", reference's own line" });
          line(theirs, { mode: "markers", opacity: 0.4, marker: { color, size: 4, symbol: "circle-open" }, name: key + ", reference's own" });
        }
        curve(({ row }) => row.error, { line: { color, width: 1.4 }, name: key + " line" });
        made.push({ x, y: points.map(({ row }) => errorHeight(row)), type: "scatter", mode: "markers", name: key,
          showlegend: false, customdata: x, text: points.map(({ entry }) => hover(entry)), hovertemplate: "%{text}<extra></extra>",
          marker: markers(points.map(({ row }) => row), { color, dot, symbol }) });
      }
      return made;
    }

    function draw() {
      entries = collect();
      reset();
      const every = entries.flatMap(({ by }) => Object.values(by));
      const zero = every.some((row) => row.error === 0 || row.reference_error === 0);
      const none = every.some((row) => !finite(row.error));
      const crossed = entries.map((entry, index) => ({ entry, index })).filter(({ entry }) => culprits.has(entry.row.port) || culprits.has(entry.row.layer));
      const narrow = isNarrow(figure), grid = colour("line");
      note.textContent = !entries.length ? "Nothing was read in this way in this case."
        : remarks(zero, none, every.some((row) => !passes(row)), crossed.length ? "Vertical lines mark the culprits." : "", marked(entries));
      show(figure, traces(), {
        margin: { l: narrow ? 46 : 56, r: narrow ? 4 : 12, t: 28, b: 124 },
        xaxis: { ...ticks(entries, figure.clientWidth), range: [-1, entries.length], tickangle: -50, showgrid: false, zeroline: false, linecolor: grid, ticks: "outside", tickcolor: grid },
        yaxis: axis(narrow, zero, none),
        shapes: [...crossed.map(({ index }) => ({ type: "line", yref: "paper", y0: 0, y1: 1, x0: index, x1: index, layer: "below",
          line: { color: colour("bad"), width: 1 }, opacity: 0.45 })), ...edges(zero, none)],
      });
    }

    let reset = () => {};
    draw();
    reset = reader(figure, readout, {
      count: () => entries.length,
      read: (at) => [element("code", {}, title(entries[at])), " (", element("code", {}, path(entries[at].row.reference)), ") ",
        names(entries[at]).map(({ key, label }) => about(label, entries[at].by[key])).join("; ")],
      list: (at) => listed(path(entries[at].row.port)),
    });
    redraws.push(draw);
    addEventListener("resize", () => { const made = ticks(entries, figure.clientWidth);
      Plotly.relayout(figure, { "xaxis.tickvals": made.tickvals, "xaxis.ticktext": made.ticktext }); });
    return draw;
  }

  // ---- the error of every layer ----

  function layers() {
    // Summaries of sampled arrays and known differences stand in the table; the figure shows the arrays themselves.
    const computed = comparisons.filter((row) => !training.has(row.gate) && row.precision !== "exact" && row.reading !== "value"
      && !/[.]|known difference|output with/.test(row.quantity));
    if (!computed.length) {
      byId("figure").remove();
      byId("readout").remove();
      byId("figure-section").querySelector(".note").textContent = "No layer was compared.";
      return;
    }
    const precisions = ranked(unique(computed.map((row) => row.precision)), ORDER);
    const readings = ranked(unique(computed.map((row) => row.reading)), READINGS);
    const modes = ranked(unique(computed.map((row) => row.mode)), ["evaluation", "training"]);
    const cases = unique(computed.map((row) => row.case));
    const first = data.culprit_rows.length ? data.culprit_rows[0].worst : computed.find((row) => !passes(row))
      || computed.find((row) => row.reading === "isolated") || computed[0];
    const state = {
      reading: readings.includes(first.reading) ? first.reading : readings[0],
      mode: modes.includes(first.mode) ? first.mode : modes[0],
      case: cases.includes(first.case) ? first.case : cases[0],
    };
    const hidden = new Set();

    function collect() {
      const rows = computed.filter((row) => row.case === state.case && row.reading === state.reading && row.mode === state.mode);
      const byKey = new Map(), calls = new Map();
      for (const row of rows) {
        const name = JSON.stringify([row.port, row.reference, row.quantity]);
        // The second array of one name in one precision belongs to the layer's second call.
        const call = (calls.get(row.precision + name) ?? -1) + 1;
        calls.set(row.precision + name, call);
        const key = call + name;
        if (!byKey.has(key)) byKey.set(key, { row, order: row.order, by: {} });
        byKey.get(key).by[row.precision] = row;
      }
      return [...byKey.values()].sort((a, b) => a.order - b.order);
    }

    const draw = profile({
      figure: byId("figure"), readout: byId("readout"), note: byId("figure-note"), rows: computed, collect, hidden,
      series: precisions.map((key) => ({ key, label: key, color: colourName(key) })),
      own: ({ row }) => row.reference_error, marked: () => "",
    });
    const choice = (legend, values, key) => choices(legend, values, state[key], (value) => { state[key] = value; draw(); });
    byId("figure-controls").append(
      ...choice("Case", cases, "case"), ...choice("Reading", readings, "reading"), ...choice("Mode", modes, "mode"),
      toggles(hidden, draw, [...precisions.map((key) => ({ key, label: printable(key), color: colourName(key) })),
        { key: "own", label: "reference's own error", kind: "own" }, { key: "limits", label: "limits", kind: "limit" }]));
  }

  // ---- the error of every gradient ----

  function gradients({ series, cases }) {
    const entryOf = (indices) => {
      const by = Object.fromEntries(Object.entries(indices).map(([name, index]) => [name, comparisons[index]]));
      return { row: Object.values(by)[0], by };
    };
    const all = Object.fromEntries(Object.entries(cases).map(([name, views]) => [name,
      Object.fromEntries(Object.entries(views).map(([view, entries]) => [view, entries.map(entryOf)]))]));
    const rows = Object.values(all).flatMap((views) => Object.values(views).flat()).flatMap(({ by }) => Object.values(by));
    const failed = Object.keys(all).find((name) => Object.values(all[name]).flat().some(({ by }) => Object.values(by).some((row) => !passes(row))));
    const isolated = Object.keys(all).find((name) => Object.values(all[name]).flat().some(({ by }) => Object.keys(by).some((key) => key.startsWith("isolated"))));
    const state = { case: failed ?? isolated ?? Object.keys(all)[0], view: "parameters" };
    const hidden = new Set();
    const noise = (row) => row.quantity.endsWith("zero in theory");
    // The same precision has two readings here, so its colour belongs to the isolated one.
    const drawn = series.map((key) => {
      const [reading, precision] = [key.slice(0, key.indexOf(" ")), key.slice(key.indexOf(" ") + 1)];
      const second = reading !== "isolated" && series.includes("isolated " + precision);
      return { key, label: key, owner: key, color: second ? "other" : colourName(precision), symbol: reading === "isolated" ? "circle" : "diamond-open" };
    });
    const views = unique(Object.values(all).flatMap(Object.keys)).sort().reverse();
    const draw = profile({
      figure: byId("gradients"), readout: byId("gradients-readout"), note: byId("gradients-note"), rows, hidden, series: drawn,
      collect: () => all[state.case][state.view] || [],
      // Of a gradient that is zero in theory the reference's own error is its own noise.
      own: ({ row, entry }, key) => row.reference_error ?? entry.by[key + ", reference"]?.error ?? null,
      apart: noise, limitShape: "hvh",
      marked: (entries) => entries.some(({ by }) => Object.values(by).some(noise))
        ? "Points off the curve: gradients that are zero in exact arithmetic are noise on both sides, related to the root mean square of all gradients." : "",
    });
    const choice = (legend, values, key) => choices(legend, values, state[key], (value) => { state[key] = value; draw(); }, "gradients " + key);
    byId("gradients-controls").append(...choice("Case", Object.keys(all), "case"), ...choice("By", views, "view"),
      toggles(hidden, draw, [...drawn.map(({ key, color }) => ({ key, label: printable(key), color })),
        { key: "own", label: "reference's own error", kind: "own" }, { key: "limits", label: "limits", kind: "limit" }]));
  }

  // ---- the trajectory ----

  function trajectory({ precisions, quantities, cases }) {
    const names = Object.keys(cases);
    const bad = (steps) => steps.some((index) => !passes(comparisons[index]));
    const failing = (quantity) => names.find((name) => Object.values(cases[name]).some((found) => bad(found[quantity] || [])));
    const quantity = quantities.find((name) => failing(name) !== undefined) ?? quantities[0];
    const state = { case: failing(quantity) ?? names[0], quantity };
    const hidden = new Set();

    const panels = precisions.map((precision, position) => {
      const figure = byId("trajectory-" + position);
      let rows = [];
      function draw() {
        rows = (cases[state.case]?.[precision]?.[state.quantity] || []).map((index) => comparisons[index]);
        reset();
        const { low, high, FLOOR, height, errorHeight, axis, edges } = scale(rows, rows.length ? [Infinity, 0] : [1e-16, 1e-3]);
        const color = colour(colourName(precision)), muted = colour("muted"), narrow = isNarrow(figure), grid = colour("line");
        const x = rows.map((row) => row.order);
        const zero = rows.some((row) => row.error === 0 || row.reference_error === 0), none = rows.some((row) => !finite(row.error));
        const made = [];
        const line = (values, more) => made.push({ x, y: rows.map((row) => finite(values(row)) && values(row) > 0 ? values(row) : null),
          type: "scatter", mode: "lines", hoverinfo: "skip", ...more });
        if (!hidden.has("envelope")) {
          made.push({ x, y: rows.map(() => FLOOR / 100), type: "scatter", mode: "lines", line: { width: 0 }, hoverinfo: "skip", name: "bottom" });
          made.push({ x, y: rows.map((row) => height(row.reference_error)), type: "scatter", mode: "lines", hoverinfo: "skip", name: "envelope",
            line: { color: muted, width: 1.2, dash: "dash" }, fill: "tonexty", fillcolor: muted.startsWith("#") ? muted + "33" : "rgba(128,128,128,0.2)" });
        }
        if (!hidden.has("limit")) line((row) => row.limit, { name: "limit", line: { color: muted, width: 1.6, dash: "dot" } });
        if (!hidden.has("port")) {
          line((row) => row.error, { name: "port line", line: { color, width: 1.6 } });
          made.push({ x, y: rows.map(errorHeight), type: "scatter", mode: "markers", name: "port", customdata: rows.map((_, index) => index),
            text: rows.map((row) => "<b>step " + row.order + "</b><br>" + escaped(told(row)).replaceAll("; ", "<br>")),
            hovertemplate: "%{text}<extra></extra>", marker: markers(rows, { color, dot: narrow ? 3.5 : 4.5, cross: 7 }) });
        }
        show(figure, made, {
          margin: { l: 52, r: 12, t: 28, b: 40 }, yaxis: { ...axis(high - low > 6, zero, none), fixedrange: narrow }, shapes: edges(zero, none),
          xaxis: { title: { text: "step", standoff: 6 }, range: [0, Math.max(1, ...x) + 1], showgrid: false, zeroline: false, linecolor: grid, ticks: "outside", tickcolor: grid,
            fixedrange: narrow },
          annotations: rows.length ? [] : [{ text: "nothing was compared", showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5 }],
        });
      }
      const told = (row) => (finite(row.error) ? "port " + number(row.error) : row.status) + "; envelope " + number(row.reference_error)
        + "; limit " + number(row.limit) + (passes(row) ? "" : "; ✗ " + row.status + (row.detail ? ", " + printable(row.detail) : ""));
      let reset = () => {};
      draw();
      reset = reader(figure, byId("trajectory-" + position + "-readout"), {
        count: () => rows.length,
        read: (at) => [element("b", {}, printable(rows[at].quantity)), " ", told(rows[at])],
        list: (at) => listed("at step " + rows[at].order + " " + precision, { cases: state.case, gates: "trajectory" }),
      });
      redraws.push(draw);
      return draw;
    });
    const shown = () => Object.values(cases[state.case]).flatMap((found) => found[state.quantity] || []).map((index) => comparisons[index]);
    const draw = () => {
      panels.forEach((panel) => panel());
      note();
    };
    const note = () => {
      byId("trajectory-note").textContent = remarks(shown().some((row) => row.error === 0 || row.reference_error === 0),
        shown().some((row) => !finite(row.error)), shown().some((row) => !passes(row)));
    };
    note();
    const choice = (legend, values, key) => choices(legend, values, state[key], (value) => { state[key] = value; draw(); }, "trajectory " + key);
    byId("trajectory-controls").append(...choice("Case", names, "case"), ...choice("Quantity", quantities, "quantity"),
      toggles(hidden, draw, [{ key: "port", label: "port", color: colourName(precisions[0]) },
        { key: "envelope", label: "envelope", kind: "envelope" }, { key: "limit", label: "limit", kind: "limit" }]));
  }

  // ---- convergence ----

  function convergence({ seeds, panels }) {
    if (!seeds.length) return;
    const plain = (value) => finite(value) ? Number(value.toPrecision(4)).toString() : value === null ? "-" : String(value);
    panels.forEach(({ quantity, label, pairs, passed }, position) => {
      const [curves, dots] = ["runs-", "differences-"].map((name) => byId(name + position));
      const decision = data.equivalences.find((one) => one.quantity === quantity);
      const values = (run) => run[quantity] || [];
      let at = null;

      function drawRuns() {
        const narrow = isNarrow(curves), grid = colour("line");
        const made = [];
        const mean = [];
        for (const [side, color, dash] of [["port", colour("float64"), "solid"], ["reference", colour("muted"), "dash"]]) {
          const runs = data.runs.filter((run) => run.side === side);
          const points = runs.flatMap((run) => [...values(run).map((value, epoch) => ({ epoch, value, run })), null]);
          made.push({ x: points.map((point) => point && point.epoch), y: points.map((point) => point && finite(point.value) ? point.value : null),
            customdata: points.map((point) => point ? seeds.indexOf(point.run.seed) : -1), type: "scatter", mode: "lines", name: side + " runs",
            line: { color, width: 1 }, opacity: 0.35, connectgaps: false, hovertemplate: "%{text}<extra></extra>",
            text: points.map((point) => point ? side + ", seed " + point.run.seed + "<br>epoch " + point.epoch + ": " + plain(point.value) : "") });
          const epochs = [...Array(Math.max(0, ...runs.map((run) => values(run).length))).keys()];
          const means = epochs.map((epoch) => runs.map((run) => values(run)[epoch]).filter(finite))
            .map((found) => found.length ? found.reduce((a, b) => a + b, 0) / found.length : null);
          mean.push({ x: epochs, y: means, type: "scatter", mode: "lines+markers", name: side, line: { color: side === "port" ? color : colour("text"), width: 2.4, dash },
            marker: { size: 6 }, hoverinfo: "skip" });
          if (at !== null) {
            const run = runs.find((one) => one.seed === seeds[at]);
            mean.push({ x: run ? values(run).map((_, epoch) => epoch) : [], y: run ? values(run).map((value) => finite(value) ? value : null) : [], type: "scatter",
              mode: "lines+markers", name: side + " selected", hoverinfo: "skip", line: { color: colour("bfloat16"), width: 2, dash }, marker: { size: 5 } });
          }
        }
        show(curves, [...made, ...mean], { margin: { l: 52, r: 12, t: 28, b: 40 },
          xaxis: { title: { text: "epoch", standoff: 6 }, dtick: 1, showgrid: false, zeroline: false, linecolor: grid, ticks: "outside", tickcolor: grid, fixedrange: narrow },
          yaxis: { gridcolor: grid, zeroline: false, fixedrange: narrow } });
      }

      function drawDifferences() {
        const narrow = isNarrow(dots), grid = colour("line"), text = colour("text");
        const known = pairs.map((pair, index) => ({ ...pair, index })).filter(({ difference }) => difference !== null);
        const margin = decision && finite(decision.margin) ? decision.margin : null;
        const ends = decision && finite(decision.mean) ? [decision.low, decision.mean, decision.high].filter(finite) : [];
        const reach = 1.15 * Math.max(...known.map(({ difference }) => Math.abs(difference)), ...ends.map(Math.abs), margin ?? 0, Number.MIN_VALUE);
        const bottom = -Math.max(3, pairs.length / 5), own = bottom / 2;
        const made = [{ x: known.map(({ difference }) => difference), y: known.map(({ index }) => pairs.length - index), customdata: known.map(({ index }) => index),
          type: "scatter", mode: "markers", name: "differences", hovertemplate: "%{text}<extra></extra>",
          text: known.map(({ seed, difference }) => "seed " + seed + "<br>port − reference " + plain(difference)),
          marker: { color: known.map(({ index }) => colour(index === at ? "bfloat16" : "float64")), size: known.map(({ index }) => index === at ? 11 : 7), opacity: 0.85, line: { width: 0 } } }];
        if (ends.length === 3) {
          made.push({ x: [ends[0], ends[2]], y: [own, own], type: "scatter", mode: "lines", name: "interval", line: { color: text, width: 5 }, hoverinfo: "skip" });
          made.push({ x: [ends[1]], y: [own], type: "scatter", mode: "markers", name: "mean", marker: { color: passed ? colour("good") : colour("bad"), size: 13, symbol: "diamond",
            line: { color: colour("back"), width: 1.5 } }, hovertemplate: "mean " + plain(ends[1]) + "<br>90 % interval " + plain(ends[0]) + " to " + plain(ends[2]) + "<extra></extra>" });
        }
        const upright = (x, color, dash, width) => ({ type: "line", yref: "paper", y0: 0, y1: 1, x0: x, x1: x, line: { color, width, dash }, layer: "below" });
        show(dots, made, { margin: { l: 12, r: 12, t: 28, b: 40 },
          shapes: [...(margin === null ? [] : [{ type: "rect", yref: "paper", y0: 0, y1: 1, x0: -margin, x1: margin, fillcolor: colour("good-back"), line: { width: 0 }, layer: "below" },
            upright(-margin, colour("good"), "dot", 1.4), upright(margin, colour("good"), "dot", 1.4)]), upright(0, colour("muted"), "solid", 1)],
          annotations: margin === null ? [] : [[-margin, "−margin", "left"], [margin, "+margin", "right"]].map(([x, word, xanchor]) => ({ x, y: 1, yref: "paper", yanchor: "top",
            text: word, xanchor, showarrow: false, font: { size: 11, color: colour("good") } })),
          xaxis: { title: { text: "port − reference", standoff: 6 }, range: [-reach, reach], gridcolor: grid, zeroline: false, linecolor: grid, ticks: "outside", tickcolor: grid,
            nticks: narrow ? 5 : 8, fixedrange: narrow },
          yaxis: { visible: false, range: [bottom, pairs.length - bottom / 2], fixedrange: true } });
      }

      const draw = () => { drawRuns(); drawDifferences(); };
      const readout = byId("runs-" + position + "-readout");
      const read = (index) => {
        if (index !== at) { at = index; draw(); }
        const { seed, reference, port, difference } = pairs[index];
        return [element("b", {}, "seed " + seed), " reference " + plain(reference) + "; port " + plain(port) + "; difference " + plain(difference)];
      };
      draw();
      for (const figure of [curves, dots]) reader(figure, readout, { count: () => seeds.length, read });
      redraws.push(draw);
    });
  }

  layers();
  if (data.figures.gradients) gradients(data.figures.gradients);
  if (data.figures.trajectory) trajectory(data.figures.trajectory);
  if (data.figures.convergence) convergence(data.figures.convergence);
})();
