"use strict";
// Draws the charts of a report from the document that the page holds. Names in it come from anybody, so text
// only ever becomes text: tooltips are built of nodes, and nothing is read as HTML.
(() => {
  const report = JSON.parse(document.getElementById("report").textContent);
  const root = document.documentElement;
  const charts = new Map();
  let view = "before";
  let printing = false;
  const looking = new Map(); // treemap → the package that is looked into

  const colour = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
  const RULES = {
    images: "Code for other GPUs", native: "PTX that became code", compress: "Compression",
    symbols: "Symbols, debug info", files: "Unopened files", bytecode: "Bytecode, added",
  };
  const SERVES = {
    native: "machine code for this GPU", "same-major": "machine code for an earlier GPU of its generation",
    family: "machine code for its family", jit: "some of it waits for the driver’s compiler",
    none: "nothing found for this GPU", broken: "cannot be read", unjudged: "not judged", "no-code": "no GPU code",
  };
  const FILLS = { none: "idle", broken: "none", unjudged: "same-major" };

  function size(bytes) {
    const count = Math.abs(bytes);
    for (const [unit, scale, digits] of [["GB", 1e9, 2], ["MB", 1e6, 1], ["kB", 1e3, 0]]) {
      if (count >= scale) return `${(count / scale).toFixed(digits)} ${unit}`;
    }
    return `${count} B`;
  }
  function time(milliseconds) {
    if (milliseconds < 1000) return `${Number(milliseconds.toPrecision(3))} ms`;
    const seconds = milliseconds / 1000;
    if (seconds < 60) return `${seconds.toFixed(1)} s`;
    return `${Math.floor(Math.round(seconds) / 60)} min ${Math.round(seconds) % 60} s`;
  }
  const file = (path) => path.slice(path.lastIndexOf("/") + 1);
  function tip(...lines) {
    const box = document.createElement("div");
    lines.filter(Boolean).forEach((line, index) => {
      const row = document.createElement("div");
      row.textContent = line;
      if (index === 0) row.style.fontWeight = "600";
      box.append(row);
    });
    return box;
  }

  function base() {
    const text = { color: colour("soft"), fontFamily: getComputedStyle(document.body).fontFamily, fontSize: 13 };
    return {
      animation: false,
      textStyle: text,
      tooltip: {
        confine: true, backgroundColor: colour("card"), borderColor: colour("line"),
        textStyle: { ...text, color: colour("ink") }, extraCssText: "max-width: 340px; white-space: normal",
      },
    };
  }
  const narrow = (element) => element.clientWidth < 520;
  function bars(element, names, extra) {
    const labels = { color: colour("ink"), fontSize: narrow(element) ? 12 : 13 };
    return {
      ...base(),
      grid: { left: 4, right: narrow(element) ? 64 : 84, top: extra?.top ?? 4, bottom: 4, containLabel: true },
      yAxis: {
        type: "category", inverse: true, data: names, axisTick: { show: false },
        axisLine: { lineStyle: { color: colour("line") } },
        axisLabel: { ...labels, width: narrow(element) ? 130 : 230, overflow: "truncate" },
      },
      xAxis: { type: "value", show: false },
    };
  }
  const bar = (name, data, more) => ({ name, type: "bar", stack: "all", barMaxWidth: 26, data, ...more });

  // From installed to result: each rule takes its part off, a waterfall.
  function steps(element) {
    const subject = report.subjects[Number(element.dataset.subject)];
    if (!subject.sizes) return null;
    const rows = [["Installed", 0, subject.sizes.installed, "no-code"]];
    let left = subject.sizes.installed;
    for (const { rule, bytes } of subject.savings) {
      rows.push([RULES[rule] ?? rule, Math.min(left, left - bytes), Math.abs(bytes), bytes > 0 ? "took" : "jit", bytes]);
      left -= bytes;
    }
    rows.push(["Result", 0, subject.sizes.result, "native"]);
    element.style.height = `${rows.length * 40 + 8}px`;
    const sign = (row) => (row.length < 5 ? "" : row[4] > 0 ? "−" : "+");
    const option = bars(element, rows.map((row) => row[0]));
    option.tooltip.formatter = (at) => tip(rows[at.dataIndex][0], sign(rows[at.dataIndex]) + size(rows[at.dataIndex][2]));
    option.series = [
      bar("", rows.map((row) => row[1]), { itemStyle: { color: "transparent" }, tooltip: { show: false }, silent: true }),
      bar("bytes", rows.map((row) => ({
        value: row[2],
        itemStyle: { color: colour(row[3]), borderRadius: 3 },
      })), {
        label: { show: true, position: "right", color: colour("ink"), formatter: (at) => sign(rows[at.dataIndex]) + size(at.value) },
      }),
    ];
    return option;
  }

  function batch(element) {
    const built = report.subjects.filter((subject) => subject.sizes);
    if (!built.length) return null;
    element.style.height = `${built.length * 42 + 40}px`;
    const option = bars(element, built.map((subject) => subject.short), { top: 30 });
    option.legend = { top: 0, left: 0, textStyle: { color: colour("ink") }, itemWidth: 14, itemHeight: 14 };
    option.tooltip.formatter = (at) => {
      const { variant, sizes } = built[at.dataIndex];
      return tip(variant, `${size(sizes.result)} of ${size(sizes.installed)}`);
    };
    option.series = [
      bar("result", built.map((subject) => subject.sizes.result), { itemStyle: { color: colour("native") } }),
      bar("freed", built.map((subject) => subject.sizes.installed - subject.sizes.result), {
        itemStyle: { color: colour("went") },
        label: { show: true, position: "right", color: colour("ink"), formatter: (at) => size(built[at.dataIndex].sizes.result) },
      }),
    ];
    return option;
  }

  // First calls against later ones, on a scale on which each step is ten times as long.
  function calls(element) {
    const card = report.evidence[Number(element.dataset.card)];
    const timed = card.checks.filter((check) => (card.compared
      ? check.first_ms && check.first_ms[0] > 0 && check.first_ms[1] > 0 : check.first_ms > 0));
    const weight = (check) => (card.compared ? check.first_ms[1] / check.first_ms[0] : check.first_ms);
    const rows = timed.sort((one, other) => weight(other) - weight(one)).slice(0, 12);
    if (!rows.length) return null;
    element.style.height = `${rows.length * 40 + 36}px`;
    const option = bars(element, rows.map((check) => check.check), { top: 30 });
    const lowest = 10 ** Math.floor(Math.log10(Math.min(...rows.flatMap((check) => (card.compared
      ? check.first_ms : [check.first_ms, check.median_ms || check.first_ms])))));
    option.xAxis = { type: "log", show: false, min: 1 }; // ECharts draws bars of a logarithmic axis from 1
    option.legend = { top: 0, left: 0, textStyle: { color: colour("ink") }, itemWidth: 14, itemHeight: 14, selectedMode: false };
    const [slow, quick] = card.compared ? ["first call, other", "first call, this"] : ["first call", "later calls"];
    const label = { show: true, position: "right", color: colour("ink"), formatter: (at) => (at.value ? time(at.value * lowest) : "") };
    const series = (name, fill, pick) => ({
      name, type: "bar", barMaxWidth: 13, barGap: "15%", label, itemStyle: { color: colour(fill), borderRadius: 2 },
      data: rows.map((check) => (pick(check) > 0 ? pick(check) / lowest : null)),
    });
    option.tooltip.formatter = (at) => tip(rows[at.dataIndex].check, `${at.seriesName}: ${time(at.value * lowest)}`);
    option.series = [
      series(slow, "jit", (check) => (card.compared ? check.first_ms[1] : check.first_ms)),
      series(quick, "native", (check) => (card.compared ? check.first_ms[0] : check.median_ms)),
    ];
    return option;
  }

  // Where the bytes are: packages, their files, and of each file what stayed and what went.
  const bytesOf = (item) => (view === "before" ? item.before ?? item.after : item.after);
  function leaf(part, name) {
    const fill = FILLS[part.serves] ?? part.serves;
    const ink = ["jit"].includes(fill) ? colour("on-jit") : colour("on-native");
    const own = { name, value: part.after, part, kind: "stays", itemStyle: { color: colour(fill) }, label: { color: ink } };
    const went = bytesOf(part) - part.after;
    if (went <= 0) return own;
    const gone = {
      name: `−${size(went)}`, value: went, part, kind: "went", label: { color: colour("went-ink") },
      itemStyle: { color: colour("went"), decal: { symbol: "rect", dashArrayX: [1, 0], dashArrayY: [1, 6], rotation: -0.78, color: colour("line") } },
    };
    return { name, part, value: bytesOf(part), children: part.after ? [own, gone] : [gone], itemStyle: { gapWidth: 0, borderWidth: 1, borderColor: colour("card") } };
  }
  function tree(subject) {
    const total = subject.packages.reduce((sum, item) => sum + bytesOf(item), 0);
    const shown = subject.packages.filter((item) => bytesOf(item) >= total / 400);
    const rest = subject.packages.filter((item) => bytesOf(item) < total / 400 && bytesOf(item) > 0);
    const nodes = shown.map((item) => ({
      name: item.name, value: bytesOf(item), item,
      children: item.parts.filter((part) => bytesOf(part) > 0)
        .map((part) => leaf(part, part.path ? file(part.path) : `${part.files} smaller files`)),
    }));
    if (rest.length) {
      nodes.push({
        name: `${rest.length} smaller packages`, value: rest.reduce((sum, item) => sum + bytesOf(item), 0),
        children: rest.map((item) => ({
          name: item.name, value: bytesOf(item), item, itemStyle: { color: colour("no-code") }, label: { color: colour("on-native") },
        })),
      });
    }
    return { nodes, total };
  }
  function described(data) {
    if (data.part) {
      const { part } = data;
      const name = part.path || data.name;
      const sizes = part.before === null || part.before === part.after ? size(part.after) : `${size(part.before)} installed, ${size(part.after)} left`;
      const rules = Object.entries(part.saved).map(([rule, bytes]) => `${RULES[rule] ?? rule}: ${bytes > 0 ? "−" : "+"}${size(bytes)}`);
      return [name, sizes, SERVES[part.serves], ...rules, part.foreign ? `${size(part.foreign)} can never run here` : ""];
    }
    if (data.item) {
      const { item } = data;
      const sizes = item.before === null || item.before === item.after ? size(item.after) : `${size(item.before)} installed, ${size(item.after)} left`;
      return [`${item.name} ${item.version}`, sizes];
    }
    return [data.name, size(data.value ?? 0)];
  }
  function map(element) {
    const { nodes } = tree(report.subjects[Number(element.dataset.subject)]);
    const option = base();
    option.tooltip.formatter = (at) => tip(...described(at.data ?? { name: at.name, value: at.value }));
    option.aria = { enabled: false };
    option.series = [{
      type: "treemap", name: "all packages", data: nodes, left: 0, right: 0, top: 0, bottom: 30, roam: false,
      nodeClick: false, sort: "desc", visibleMin: 60, squareRatio: 0.75,
      breadcrumb: {
        show: looking.has(element), bottom: 0, left: 0, height: 24, itemStyle: { color: colour("faint"), borderColor: colour("line"), textStyle: { color: colour("ink") } },
        emphasis: { itemStyle: { color: colour("went") } },
      },
      label: { fontSize: narrow(element) ? 11 : 12, lineHeight: 15, overflow: "truncate", padding: [4, 5], position: "insideTopLeft", formatter: (at) => at.name },
      upperLabel: { show: true, height: 22, color: colour("ink"), fontSize: 12, fontWeight: 600, padding: [0, 4], formatter: (at) => (at.data.item || at.data.children ? `${at.name}  ${size(at.value)}` : at.name) },
      levels: [
        { itemStyle: { borderWidth: 0, gapWidth: 4, color: colour("card"), borderColor: colour("card") }, upperLabel: { show: false } },
        { itemStyle: { borderWidth: 2, gapWidth: 1, borderColor: colour("faint"), borderRadius: 4 }, emphasis: { itemStyle: { borderColor: colour("line") } } },
        { itemStyle: { borderWidth: 0, gapWidth: 0, borderColor: colour("card") }, upperLabel: { show: false } },
        { itemStyle: { borderWidth: 0, gapWidth: 0 }, upperLabel: { show: false } },
      ],
    }];
    return option;
  }

  // Look into a package of a treemap, or at all of them again.
  function look(element, index) {
    if (index === undefined) looking.delete(element);
    else looking.set(element, index);
    const chart = charts.get(element);
    chart.dispatchAction({ type: "hideTip" });
    chart.setOption({ series: [{ breadcrumb: { show: looking.has(element) } }] });
    const top = chart.getModel().getSeriesByIndex(0).getData().tree.root;
    chart.dispatchAction({ type: "treemapRootToNode", seriesIndex: 0, targetNode: index === undefined ? top : top.children[index] });
  }
  // By mouse and by keyboard: through the packages and into them, said aloud.
  function explore(element) {
    const status = element.parentElement.querySelector(".status");
    const chart = charts.get(element);
    const subject = report.subjects[Number(element.dataset.subject)];
    const top = () => chart.getModel().getSeriesByIndex(0).getData().tree.root;
    let at = -1;
    chart.on("click", (event) => {
      if (!event.treePathInfo || looking.has(element)) return;
      const { name } = event.treePathInfo[1] ?? {};
      const index = top().children.findIndex((node) => node.name === name);
      if (index >= 0) look(element, index);
    });
    chart.on("treemapRootToNode", ({ targetNode }) => {
      if (targetNode === top() && looking.has(element)) look(element);
    });
    element.addEventListener("keydown", (event) => {
      const { nodes } = tree(subject);
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (step && !looking.has(element)) {
        at = (at + step + nodes.length) % nodes.length;
        const { dataIndex } = top().children[at];
        chart.dispatchAction({ type: "downplay", seriesIndex: 0 });
        chart.dispatchAction({ type: "highlight", seriesIndex: 0, dataIndex });
        chart.dispatchAction({ type: "showTip", seriesIndex: 0, dataIndex });
        status.textContent = described(nodes[at]).filter(Boolean).join(", ");
      } else if (event.key === "Enter" && at >= 0) {
        look(element, at);
        status.textContent = `${nodes[at].name}: ${nodes[at].children.map((child) => `${child.name} ${size(child.value)}`).join(", ")}`;
      } else if (event.key === "Escape") {
        look(element);
        status.textContent = "";
      } else {
        return;
      }
      event.preventDefault();
    });
  }

  const KINDS = { steps, batch, calls, map };
  function draw(element) {
    const option = KINDS[element.dataset.chart](element);
    if (!option) return;
    let chart = charts.get(element);
    if (!chart) {
      chart = echarts.init(element, null, { renderer: "svg" });
      charts.set(element, chart);
    }
    chart.resize();
    chart.setOption(option, { notMerge: true });
    if (looking.has(element)) look(element, looking.get(element));
    element.firstElementChild?.setAttribute("aria-hidden", "true");
  }
  const elements = [...document.querySelectorAll("[data-chart]")];
  const drawAll = () => elements.forEach(draw);

  for (const element of elements) {
    element.classList.add("drawn");
    draw(element);
    if (element.dataset.chart === "map") explore(element);
  }
  const widths = new WeakMap();
  const resized = new ResizeObserver((entries) => {
    for (const { target, contentRect } of entries) {
      if (!printing && widths.get(target) !== contentRect.width) {
        widths.set(target, contentRect.width);
        draw(target);
      }
    }
  });
  elements.forEach((element) => resized.observe(element));

  for (const choice of document.querySelectorAll("[data-switch]")) {
    choice.hidden = false;
    choice.addEventListener("change", (event) => {
      view = event.target.value;
      drawAll();
    });
  }

  // A narrow screen begins with the column of the GPU that is asked about.
  for (const own of document.querySelectorAll("thead .own")) {
    const box = own.closest(".scroll");
    const over = own.offsetLeft + own.offsetWidth - box.clientWidth;
    if (over > 0) box.scrollLeft = over + own.offsetWidth / 2;
  }

  const theme = document.getElementById("theme");
  const themes = ["system", "light", "dark"];
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const next = themes[(themes.indexOf(theme.lastElementChild.textContent) + 1) % themes.length];
    theme.lastElementChild.textContent = next;
    if (next === "system") delete root.dataset.theme;
    else root.dataset.theme = next;
    drawAll();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);

  // Paper is white and 180 mm wide, whatever the screen is.
  let former;
  function toPaper() {
    if (printing) return;
    printing = true;
    former = root.dataset.theme;
    root.dataset.theme = "light";
    elements.forEach((element) => { element.style.width = "690px"; });
    drawAll();
  }
  function toScreen() {
    if (!printing) return;
    printing = false;
    if (former) root.dataset.theme = former;
    else delete root.dataset.theme;
    elements.forEach((element) => { element.style.width = ""; });
    drawAll();
  }
  addEventListener("beforeprint", toPaper);
  addEventListener("afterprint", toScreen);
  matchMedia("print").addEventListener("change", (event) => (event.matches ? toPaper() : toScreen()));
})();
