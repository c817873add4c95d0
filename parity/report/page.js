"use strict";
(() => {
  const data = JSON.parse(document.getElementById("result").textContent);
  const gates = Object.values(data.gates);
  const comparisons = gates.flatMap((gate) => gate.comparisons);
  const unique = (values) => [...new Set(values)];

  // Invisible characters are written out, as everywhere else in the report.
  const printable = (text) => String(text).replace(/[\p{C}\p{Zl}\p{Zp}]/gu, (character) => {
    const code = character.codePointAt(0);
    return code < 256 ? "\\x" + code.toString(16).padStart(2, "0") : "\\u" + code.toString(16).padStart(4, "0");
  });
  const path = (text) => printable(text) || "(model)";
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
    const texts = new Map(rows.map((row) => [row, columns.map((column) => column.text(row)).join("\n").toLowerCase()]));
    const search = element("input", { type: "search", placeholder: "Search " + rows.length.toLocaleString("en") + " rows",
      "aria-label": "Search " + label });
    const selects = filters.map(({ name, value }) => {
      const options = unique(rows.map(value).flat());
      const select = element("select", { "aria-label": name }, element("option", { value: "" }, "all " + name),
        ...options.map((option) => element("option", { value: option }, printable(option) || "none")));
      if (preset[name] !== undefined && options.includes(preset[name])) select.value = preset[name];
      return { select, value, options };
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
      const kept = rows.filter((row) => words.every((word) => texts.get(row).includes(word))
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
    return (text) => {
      search.value = text;
      selects.forEach(({ select }) => { select.value = ""; });
      draw();
    };
  }

  // A path may break after its separators.
  const code = (text, className = "") => element("code", { className }, ...text.split(/(?<=[./])/).flatMap((part) => [part, element("wbr")]));
  const paths = (row) => [code(path(row.port)), element("br"), code(path(row.reference), "muted")];
  const shape = (value) => value === null ? "-" : "(" + value.join(", ") + ")";
  const columns = [
    { name: "Layer (port, reference)", kind: "path", text: (row) => path(row.port) + "\n" + path(row.reference), nodes: paths,
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

  // ---- the figure ----

  const ORDER = ["float64", "float32", "bfloat16"];
  const READINGS = ["isolated", "block", "accumulated", "state"];
  const ranked = (names, known) => [...known.filter((name) => names.includes(name)), ...names.filter((name) => !known.includes(name)).sort()];
  // Summaries of sampled arrays and known differences stand in the table; the figure shows the arrays themselves.
  const computed = comparisons.filter((row) => row.precision !== "exact" && row.reading !== "value"
    && !/[.]|known difference|output with/.test(row.quantity));
  const section = document.getElementById("figure-section");
  if (!computed.length) {
    document.getElementById("figure").remove();
    document.getElementById("readout").remove();
    section.querySelector(".note").textContent = "No layer was compared.";
    return;
  }
  const precisions = ranked(unique(computed.map((row) => row.precision)), ORDER);
  const readings = ranked(unique(computed.map((row) => row.reading)), READINGS);
  const modes = ranked(unique(computed.map((row) => row.mode)), ["evaluation", "training"]);
  const cases = unique(computed.map((row) => row.case));
  const culprits = new Set(data.culprits);
  const first = data.culprit_rows.length ? data.culprit_rows[0].worst : computed.find((row) => !passes(row))
    || computed.find((row) => row.reading === "isolated") || computed[0];
  const state = {
    reading: readings.includes(first.reading) ? first.reading : readings[0],
    mode: modes.includes(first.mode) ? first.mode : modes[0],
    case: cases.includes(first.case) ? first.case : cases[0],
    hidden: new Set(), at: null,
  };

  const positive = computed.flatMap((row) => [row.error, row.limit, row.reference_error]).filter((value) => finite(value) && value > 0);
  const low = Math.floor(Math.log10(positive.reduce((a, b) => Math.min(a, b), 1e-16)));
  const high = Math.ceil(Math.log10(positive.reduce((a, b) => Math.max(a, b), 1e-3)));
  const FLOOR = 10 ** (low - 1), CEILING = 10 ** (high + 1);
  const height = (value) => value === null || value === undefined ? null : !finite(value) ? CEILING : value === 0 ? FLOOR : value;
  const errorHeight = (row) => finite(row.error) ? height(row.error) : CEILING;

  // plotly reads a little HTML in its texts.
  const escaped = (text) => printable(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  const colourOf = (precision) => colour(ORDER.includes(precision) ? precision : "other");

  function layers() {
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

  const about = (row) => row.precision + ": "
    + (finite(row.error) ? number(row.error) + " of " + number(row.limit) : row.status)
    + (row.reference_error === null ? "" : ", reference's own " + number(row.reference_error)) + (passes(row) ? "" : "  ✗ " + row.status);
  const title = ({ row }) => path(row.port) + (row.quantity === "output" ? "" : " · " + printable(row.quantity));
  const clipped = (text) => text.length > 60 ? "…" + text.slice(-59) : text;
  const hover = (entry) => "<b>" + escaped(clipped(title(entry))) + "</b><br>" + escaped(clipped(path(entry.row.reference))) + "<br>"
    + ranked(Object.keys(entry.by), ORDER).map((name) => escaped(about(entry.by[name]))).join("<br>");

  // One label where a new part of the model begins; its numbered repetitions where there is room.
  function ticks(entries, width) {
    const chosen = [];
    const room = entries.length / Math.max(4, width / 30);
    const numbered = (parts) => 1 + parts.findIndex((part) => /^\d+$/.test(part));
    for (const depth of [() => 1, numbered]) {
      let last = null;
      entries.forEach((entry, index) => {
        const parts = path(entry.row.port).split(".");
        const prefix = parts.slice(0, depth(parts) || 1).join(".");
        if (prefix !== last && chosen.every((tick) => Math.abs(tick.index - index) >= room)) chosen.push({ index, prefix });
        last = prefix;
      });
    }
    chosen.sort((a, b) => a.index - b.index);
    return { tickvals: chosen.map(({ index }) => index),
      ticktext: chosen.map(({ prefix }) => escaped(prefix.length > 20 ? prefix.slice(0, 19) + "…" : prefix)) };
  }

  const figure = document.getElementById("figure");
  const readout = document.getElementById("readout");
  let entries = [];

  function traces() {
    const made = [], dot = figure.clientWidth < 560 ? 3.5 : 5;
    for (const precision of precisions.filter((name) => !state.hidden.has(name))) {
      const points = entries.map((entry, index) => ({ entry, index, row: entry.by[precision] })).filter(({ row }) => row);
      if (!points.length) continue;
      const color = colourOf(precision);
      const x = points.map(({ index }) => index);
      const line = (values, more) => made.push({ x, y: points.map(({ row }) => height(values(row))), type: "scatter",
        hoverinfo: "skip", showlegend: false, ...more });
      if (!state.hidden.has("limits")) {
        line((row) => row.limit, { mode: "lines", line: { color, width: 1.2, dash: "dot" }, opacity: 0.8, name: precision + " limit" });
      }
      // Zeros and missing numbers sit on lines of their own; joining them to the curve would draw a slope that is not there.
      const curve = (values, more) => line(values, { mode: "lines", connectgaps: false,
        y: points.map(({ row }) => finite(values(row)) && values(row) > 0 ? values(row) : null), ...more });
      if (!state.hidden.has("own") && points.some(({ row }) => row.reference_error !== null)) {
        const own = (row) => row.reference_error, dashed = { color, width: 1.2, dash: "dash" };
        curve(own, { opacity: 0.4, line: dashed, name: precision + ", reference's own line" });
        line(own, { mode: "markers", opacity: 0.4, marker: { color, size: 4, symbol: "circle-open" }, name: precision + ", reference's own" });
      }
      curve((row) => row.error, { line: { color, width: 1.4 }, name: precision + " line" });
      made.push({ x, y: points.map(({ row }) => errorHeight(row)), type: "scatter", mode: "markers", name: precision,
        showlegend: false, customdata: x, text: points.map(({ entry }) => hover(entry)),
        hovertemplate: "%{text}<extra></extra>",
        marker: { opacity: 1, line: { width: 0 }, color: points.map(({ row }) => passes(row) ? color : colour("bad")),
          size: points.map(({ row }) => !passes(row) ? 11 : row.error === 0 ? 8 : dot),
          symbol: points.map(({ row }) => !passes(row) ? "x" : row.error === 0 ? "triangle-down-open" : "circle") } });
    }
    return made;
  }

  function layout() {
    const width = figure.clientWidth;
    const narrow = width < 560;
    const exponents = [];
    for (let power = low; power <= high; power += narrow || high - low > 10 ? 2 : 1) exponents.push(power);
    const grid = colour("line"), text = colour("muted");
    const marked = entries.map((entry, index) => ({ entry, index })).filter(({ entry }) => culprits.has(entry.row.port));
    const edge = (y) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, line: { color: text, width: 1, dash: "dot" } });
    const zero = entries.some(({ by }) => Object.values(by).some((row) => row.error === 0 || row.reference_error === 0));
    const none = entries.some(({ by }) => Object.values(by).some((row) => !finite(row.error)));
    const span = [zero ? low - 1.5 : low - 0.3, none ? high + 1.5 : high + 0.3];
    document.getElementById("figure-note").textContent = [
      zero ? "An exact zero has no place on a logarithmic axis: it is drawn at the bottom, on the line marked 0, with an open triangle." : "",
      none ? "Missing and non-finite results are drawn at the top, on the line marked none." : "",
      entries.some(({ by }) => Object.values(by).some((row) => !passes(row))) ? "Crosses did not pass." : "", marked.length ? "Vertical lines mark the culprits." : "",
    ].filter(Boolean).join(" ");
    return {
      margin: { l: narrow ? 46 : 56, r: narrow ? 4 : 12, t: 28, b: 124 }, hovermode: "closest", dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: text },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: text, activecolor: colour("text") },
      hoverlabel: { align: "left", bgcolor: colour("panel"), bordercolor: grid, font: { family: getComputedStyle(document.body).fontFamily, color: colour("text"), size: 12 } },
      xaxis: { ...ticks(entries, width), range: [-1, entries.length], tickangle: -50, showgrid: false, zeroline: false, linecolor: grid, ticks: "outside", tickcolor: grid },
      yaxis: { type: "log", range: span, gridcolor: grid, zeroline: false, fixedrange: narrow,
        tickvals: [...exponents.map((power) => 10 ** power), ...(zero ? [FLOOR] : []), ...(none ? [CEILING] : [])],
        ticktext: [...exponents.map((power) => "1e" + power), ...(zero ? ["0"] : []), ...(none ? ["none"] : [])] },
      shapes: [...marked.map(({ index }) => ({ type: "line", yref: "paper", y0: 0, y1: 1, x0: index, x1: index, layer: "below",
        line: { color: colour("bad"), width: 1 }, opacity: 0.45 })), ...(zero ? [edge(FLOOR)] : []), ...(none ? [edge(CEILING)] : [])],
    };
  }

  const draw = () => {
    entries = layers();
    state.at = null;
    readout.textContent = "";
    Plotly.react(figure, traces(), layout(), { responsive: true, displaylogo: false, displayModeBar: "hover",
      modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] });
    if (!entries.length) document.getElementById("figure-note").textContent = "Nothing was read in this way in this case.";
  };

  function select(index) {
    if (!entries.length) return;
    state.at = Math.max(0, Math.min(entries.length - 1, index));
    const entry = entries[state.at];
    readout.replaceChildren(element("code", {}, title(entry)), " (", element("code", {}, path(entry.row.reference)), ") ",
      ranked(Object.keys(entry.by), ORDER).map((name) => about(entry.by[name])).join("; "));
  }

  function choices(name, values, key) {
    if (values.length < 2) return [];
    if (values.length > 4) {
      const select = element("select", { name }, ...values.map((value) => element("option", { value, selected: state[key] === value },
        printable(value) || "none")));
      select.addEventListener("change", () => { state[key] = select.value; draw(); });
      return [element("label", { className: "choice" }, element("span", { className: "muted" }, name), select)];
    }
    return [element("fieldset", {}, element("legend", {}, name), ...values.map((value) => {
      const input = element("input", { type: "radio", name, checked: state[key] === value });
      input.addEventListener("change", () => { state[key] = value; draw(); });
      return element("label", {}, input, printable(value) || "no mode");
    }))];
  }

  function toggle(key, label, swatch) {
    const input = element("input", { type: "checkbox", checked: true });
    input.addEventListener("change", () => { state.hidden[input.checked ? "delete" : "add"](key); draw(); });
    return element("label", {}, input, swatch, label);
  }

  const swatch = (kind, name) => element("span", { className: "swatch " + kind, style: "border-top-color: var(--" + name + ")" });
  document.getElementById("figure-controls").append(
    ...choices("Case", cases, "case"), ...choices("Reading", readings, "reading"), ...choices("Mode", modes, "mode"),
    element("fieldset", {}, element("legend", {}, "Show"),
      ...precisions.map((name) => toggle(name, printable(name), swatch("", ORDER.includes(name) ? name : "other"))),
      toggle("own", "reference's own error", swatch("own", "muted")), toggle("limits", "limits", swatch("limit", "muted"))));
  draw();
  figure.on("plotly_hover", (event) => select(event.points[0].customdata));
  const list = () => {
    if (state.at === null || !listed) return;
    listed(path(entries[state.at].row.port));
    document.getElementById("comparisons-heading").scrollIntoView();
  };
  figure.on("plotly_click", (event) => { select(event.points[0].customdata); if (!matchMedia("(pointer: coarse)").matches) list(); });
  figure.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Enter") list();
    else if (step === undefined) return;
    else {
      select((state.at ?? (step > 0 ? -1 : entries.length)) + step);
      const shown = figure.data.flatMap((trace, curveNumber) => trace.customdata
        ? trace.customdata.map((at, pointNumber) => ({ curveNumber, pointNumber, at })) : []).filter(({ at }) => at === state.at);
      if (shown.length) Plotly.Fx.hover(figure, [shown[0]]);
    }
    event.preventDefault();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  addEventListener("resize", () => Plotly.relayout(figure, { "xaxis.tickvals": ticks(entries, figure.clientWidth).tickvals,
    "xaxis.ticktext": ticks(entries, figure.clientWidth).ticktext }));
})();
