// Linked strip plot, scatter plot, wall of brains and table of scans.
(() => {
  const box = document.getElementById("explore-tools");
  if (!box) return;
  const data = JSON.parse(box.dataset.scans);
  const SVG = document.getElementById("strip").namespaceURI;
  const WIDTH = 600, HEIGHT = 300, LEFT = 54, RIGHT = 10, TOP = 12, BOTTOM = 44;
  const STAGES = ["before", "rescaled", "after", "change", ""];
  const COLORS = 8;
  const sites = [...new Set(data.sites)].sort();
  const find = id => document.getElementById(id);
  const number = new Map(data.scans.map((scan, index) => [scan, index]));
  const marked = new Map();  // scan -> elements that show it
  const collect = () => {
    marked.clear();
    for (const element of document.querySelectorAll("[data-scan]")) {
      const scan = element.dataset.scan;
      if (!marked.has(scan)) marked.set(scan, []);
      marked.get(scan).push(element);
    }
  };

  // Menus.
  const option = (menu, words, value) => menu.add(new Option(words, value));
  const unit = column => column.unit ? ` (${column.unit})` : "";
  data.columns.forEach((column, index) => {
    option(find("strip-measure"), column.name + unit(column), index);
    for (const stage of Object.keys(column.stages)) {
      const words = column.name + (stage ? `, ${stage}` : "") + unit(column);
      option(find("scatter-x"), words, `${index} ${stage}`);
      option(find("scatter-y"), words, `${index} ${stage}`);
    }
  });
  const prefer = (menu, name, stage) => {
    const index = data.columns.findIndex(column => column.name === name && stage in column.stages);
    if (index >= 0) menu.value = menu.id === "strip-measure" ? index : `${index} ${stage}`;
  };
  prefer(find("strip-measure"), "distance to target", "before");
  prefer(find("scatter-x"), "distance to target", "before");
  prefer(find("scatter-y"), "distance to target", "after");
  for (const [id, values] of [["filter-site", data.sites], ["filter-modality", data.modalities],
                              ["filter-flag", data.flags]]) {
    for (const value of [...new Set(values)].sort()) option(find(id), value, value);
  }

  find("filter-modality").parentElement.hidden = new Set(data.modalities).size < 2;

  // Axes.
  const make = (name, attributes, parent, text) => {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    parent.append(element);
    return element;
  };
  const short = value => String(+value.toPrecision(3));
  const scale = (values, from, to, log) => {
    const known = values.filter(v => v !== null).sort((a, b) => a - b);
    let low = known[0], high = known[known.length - 1];
    if (!known.length) [low, high] = [0, 1];
    // Logarithmic where most values would lie on one line; zeros then lie at the lower end.
    const positive = known.filter(v => v > 0);
    const quarter = positive[Math.floor(positive.length / 4)];
    const useLog = positive.length > 0 && low >= 0 && high / quarter > (log ? 3 : 30);
    const f = useLog ? v => Math.log10(Math.max(v, positive[0])) : v => v;
    if (useLog) low = positive[0];
    if (low === high) [low, high] = [low - 0.5, high + 0.5];
    const pad = 0.04 * (f(high) - f(low));
    const place = v => from + (to - from) * (f(v) - f(low) + pad) / (f(high) - f(low) + 2 * pad);
    let ticks = [];
    if (useLog) {
      const steps = f(high) - f(low) > 2.5 ? [1] : [1, 2, 5];
      for (let power = Math.floor(f(low)); power <= f(high); power++) {
        for (const step of steps) ticks.push(step * 10 ** power);
      }
    } else {
      const rough = (high - low) / 4, base = 10 ** Math.floor(Math.log10(rough));
      const step = base * [1, 2, 5, 10].find(s => s * base >= rough);
      for (let i = Math.ceil(low / step); i * step <= high; i++) ticks.push(i * step);
    }
    return {place, ticks: ticks.filter(t => t >= low && t <= high)};
  };
  const axis = (svg, axisScale, vertical, label) => {
    for (const tick of axisScale.ticks) {
      const at = axisScale.place(tick);
      const line = vertical ? {x1: LEFT, x2: WIDTH - RIGHT, y1: at, y2: at}
        : {x1: at, x2: at, y1: TOP, y2: HEIGHT - BOTTOM};
      make("line", {class: "grid", ...line}, svg);
      make("text", vertical ? {class: "soft", x: LEFT - 6, y: at + 4, "text-anchor": "end"}
        : {class: "soft", x: at, y: HEIGHT - BOTTOM + 15, "text-anchor": "middle"}, svg, short(tick));
    }
    make("text", vertical ? {class: "soft", x: 12, y: (HEIGHT - BOTTOM) / 2, "text-anchor": "middle",
                             transform: `rotate(-90 12 ${(HEIGHT - BOTTOM) / 2})`}
      : {class: "soft", x: (LEFT + WIDTH) / 2, y: HEIGHT - 8, "text-anchor": "middle"}, svg, label);
  };
  const isLog = column => column.unit === "intensity";  // uncalibrated images have other units
  const dot = (svg, index, x, y, look) => make("circle", {
    class: "scan " + look, "data-scan": data.scans[index], cx: x.toFixed(1), cy: y.toFixed(1),
    r: data.scans.length > 200 ? 2.5 : 4}, svg);
  const start = id => {
    const svg = find(id);
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    return svg;
  };

  const drawStrip = () => {
    const svg = start("strip"), column = data.columns[find("strip-measure").value];
    const stages = STAGES.filter(stage => stage in column.stages);
    for (const entry of document.querySelectorAll("#strip-legend [data-stage]")) {
      entry.hidden = !stages.includes(entry.dataset.stage);
    }
    const values = stages.flatMap(stage => column.stages[stage]);
    const y = scale(values, HEIGHT - BOTTOM, TOP, isLog(column));
    axis(svg, y, true, column.name + unit(column));
    const band = (WIDTH - LEFT - RIGHT) / sites.length;
    sites.forEach((site, place) => {
      const middle = LEFT + (place + 0.5) * band;
      const many = sites.length > 6;
      make("text", {class: "soft", x: middle, y: HEIGHT - BOTTOM + (many ? 10 : 15),
                    "text-anchor": many ? "end" : "middle",
                    ...(many ? {transform: `rotate(-30 ${middle} ${HEIGHT - BOTTOM + 10})`} : {})},
           svg, site.length > 14 ? site.slice(0, 13) + "…" : site);
    });
    data.scans.forEach((_, index) => {
      const place = sites.indexOf(data.sites[index]);
      stages.forEach((stage, rank) => {
        const value = column.stages[stage][index];
        if (value === null) return;
        const lane = band / (stages.length + 0.6);
        const jitter = ((index * 0.618) % 1 - 0.5) * lane * 0.6;
        const x = LEFT + place * band + lane * (rank + 0.8) + jitter;
        dot(svg, index, x, y.place(value), stage || "change");
      });
    });
  };
  const drawScatter = () => {
    const svg = start("scatter");
    const [x, y] = ["scatter-x", "scatter-y"].map(id => {
      const [index, stage] = find(id).value.split(" ");
      const column = data.columns[index];
      return {column, values: column.stages[stage],
              words: column.name + (stage ? `, ${stage}` : "") + unit(column)};
    });
    const across = scale(x.values, LEFT, WIDTH - RIGHT, isLog(x.column));
    const up = scale(y.values, HEIGHT - BOTTOM, TOP, isLog(y.column));
    axis(svg, across, false, x.words);
    axis(svg, up, true, y.words);
    data.scans.forEach((_, index) => {
      if (x.values[index] === null || y.values[index] === null) return;
      const look = "site" + sites.indexOf(data.sites[index]) % COLORS;
      dot(svg, index, across.place(x.values[index]), up.place(y.values[index]), look);
    });
  };
  const legend = find("scatter-legend");
  sites.forEach((site, index) => {
    const entry = document.createElement("span");
    const mark = document.createElement("i");
    mark.className = "site" + index % COLORS;
    entry.append(mark, site);
    legend.append(entry);
  });

  // Selection: filters and brush. `brushed` is null or a set of scans.
  let brushed = null;
  const flagOf = index => data.flags[index];
  const passes = (scan, index) => {
    const words = find("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const text = `${scan} ${data.sites[index]}`.toLowerCase();
    const [site, modality, flag] = ["site", "modality", "flag"].map(
      name => find("filter-" + name).value);
    const rated = flag.startsWith("rated ");
    return words.every(word => text.includes(word)) && (!site || data.sites[index] === site)
      && (!modality || data.modalities[index] === modality)
      && (!flag || (rated ? ratings.of(scan) === flag.slice(6) : flagOf(index) === flag))
      && (!brushed || brushed.has(scan));
  };
  const select = () => {
    const chosen = new Set(data.scans.filter(passes));
    const all = chosen.size === data.scans.length;
    for (const [scan, elements] of marked) {
      const out = number.has(scan) && !chosen.has(scan);
      for (const element of elements) {
        element.classList.toggle("out", out);
        if (element.tagName === "circle") element.classList.toggle("in", !out && !all);
      }
    }
    find("explore-count").textContent = `${chosen.size} of ${data.scans.length} scans`;
    find("explore-clear").disabled = all && !brushed;
  };
  const draw = () => { drawStrip(); drawScatter(); collect(); select(); };

  // Brush: a drag selects the scans in the rectangle, a click opens the page of a scan.
  const open = scan => {
    const link = data.links[number.get(scan)];
    if (link) location.href = link;
  };
  for (const svg of [find("strip"), find("scatter")]) {
    let origin = null, area = null;
    const at = event => {
      const place = svg.getBoundingClientRect();
      return [(event.clientX - place.left) * WIDTH / place.width,
              (event.clientY - place.top) * HEIGHT / place.height];
    };
    const bounds = event => {
      const [x, y] = at(event);
      return [Math.min(x, origin[0]), Math.min(y, origin[1]),
              Math.max(x, origin[0]), Math.max(y, origin[1])];
    };
    svg.addEventListener("pointerdown", event => {
      if (event.button) return;
      origin = at(event);
      svg.setPointerCapture(event.pointerId);
    });
    svg.addEventListener("pointermove", event => {
      if (!origin) return;
      const [x0, y0, x1, y1] = bounds(event);
      if (!area && x1 - x0 < 4 && y1 - y0 < 4) return;
      area = area || make("rect", {class: "brush"}, svg);
      for (const [key, value] of [["x", x0], ["y", y0], ["width", x1 - x0], ["height", y1 - y0]]) {
        area.setAttribute(key, value);
      }
    });
    const end = event => {
      if (!origin) return;
      if (area) {
        const [x0, y0, x1, y1] = bounds(event);
        area.remove();
        const inside = [...svg.querySelectorAll("circle")].filter(circle => {
          const x = +circle.getAttribute("cx"), y = +circle.getAttribute("cy");
          return x >= x0 && x <= x1 && y >= y0 && y <= y1;
        }).map(circle => circle.dataset.scan);
        brushed = inside.length ? new Set(inside) : null;
        select();
      } else {
        const under = document.elementFromPoint(event.clientX, event.clientY);
        if (under && under.dataset.scan) open(under.dataset.scan);
        else if (brushed) { brushed = null; select(); }
      }
      origin = area = null;
    };
    svg.addEventListener("pointerup", end);
    svg.addEventListener("pointercancel", () => { if (area) area.remove(); origin = area = null; });
  }

  // Hover: all elements of a scan are marked, a note names it and shows its slices.
  const note = find("scan-note");
  let current = null;
  const hover = (scan, event) => {
    if (scan !== current) {
      for (const element of marked.get(current) || []) element.classList.remove("hover");
      current = scan;
      for (const element of marked.get(scan) || []) element.classList.add("hover");
      note.hidden = !scan;
      if (scan) describe(scan);
    }
    if (!scan) return;
    const width = note.offsetWidth, height = note.offsetHeight;
    const left = event.clientX + 16 + width > innerWidth ? event.clientX - width - 12
      : event.clientX + 16;
    note.style.left = `${Math.max(4, left)}px`;
    note.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - height - 8))}px`;
  };
  const describe = scan => {
    const index = number.get(scan);
    const name = document.createElement("strong");
    name.textContent = scan;
    const facts = document.createElement("p");
    const column = data.columns[find("strip-measure").value];
    const values = Object.entries(column.stages).filter(([, list]) => list[index] !== null)
      .map(([stage, list]) => `${stage} ${short(list[index])}`.trim()).join(", ");
    facts.textContent = `${data.sites[index]}, ${data.modalities[index]}; anatomy: `
      + `${data.flags[index]}; ${column.name}${unit(column)}: ${values || "n/a"}`;
    note.replaceChildren(name, facts);
    for (const tile of document.querySelectorAll(".wall [data-scan]")) {
      if (tile.dataset.scan === scan) note.append(tile.querySelector("img").cloneNode());
    }
  };
  document.addEventListener("pointerover", event => {
    if (event.pointerType === "touch") return;
    const element = event.target.closest(".rate") ? null : event.target.closest("[data-scan]");
    hover(element && number.has(element.dataset.scan) ? element.dataset.scan : null, event);
  });

  find("strip-measure").addEventListener("change", draw);
  for (const id of ["scatter-x", "scatter-y"]) find(id).addEventListener("change", draw);
  for (const id of ["search", "filter-site", "filter-modality", "filter-flag"]) {
    find(id).addEventListener("input", select);
  }
  find("explore-clear").addEventListener("click", () => {
    brushed = null;
    for (const id of ["search", "filter-site", "filter-modality", "filter-flag"]) find(id).value = "";
    select();
  });
  ratings.onChange(() => { if (find("filter-flag").value.startsWith("rated ")) select(); });
  box.hidden = false;
  find("explore-plots").hidden = false;
  draw();
})();
