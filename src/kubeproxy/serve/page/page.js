"use strict";
// Everything from the cluster becomes text nodes: no markup is ever made of it.

const PAGE = 50, REFRESH_MS = 5000, TYPING_MS = 200, MOST_SAMPLES = 200, MOST_WARNINGS = 50;
const $ = (id) => document.getElementById(id);

function make(namespace, tag, attributes, children) {
  const node = namespace ? document.createElementNS(namespace, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== undefined && child !== null && child !== ""));
  return node;
}
const el = (tag, attributes, ...children) => make("", tag, attributes, children);
const svg = (tag, attributes, ...children) => make("http://www.w3.org/2000/svg", tag, attributes, children);
const show = (id, ...children) => $(id).replaceChildren(...children);
const plural = (count, one) => `${count.toLocaleString("en")} ${one}${count === 1 ? "" : "s"}`;
const percent = (share) => (share === null ? "" : `${(100 * share).toFixed(1)} %`);
const clock = (seconds) => new Date(1000 * seconds).toLocaleTimeString("en-GB");
const more = (count) => (count > 0 ? `and ${count.toLocaleString("en")} more` : "");

async function ask(path, options) {
  const response = await fetch(path, { cache: "no-store", credentials: "omit", redirect: "error", ...options });
  if (!response.ok) throw new Error((await response.text()).trim() || `status ${response.status}`);
  return response.json();
}

// ---- Services

const STATUS = { done: ["in place", "good"], pending: ["pending", "warn"], refused: ["refused", "bad"] };
let offset = 0, total = 0, listing = null, opened = null;

function states(service) {
  const [words, style] = STATUS[service.status];
  const found = [el("span", { class: style }, words)];
  if (service.empty) found.push(", ", el("span", { class: "warn" }, "no endpoints"));
  if (service.contested) found.push(", ", el("span", { class: "warn" }, plural(service.contested, "front") + " contested"));
  if (service.words) found.push(el("div", { class: "bad" }, service.words));
  return found;
}

function row(service) {
  const open = () => detail(service.namespace, service.name, 0, true);
  const name = el("button", { type: "button", class: "link", click: open }, `${service.namespace}/${service.name}`);
  const fronts = [...service.fronts, more(service.moreFronts)].filter(Boolean).join(" ");
  return el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, ...states(service)), el("td", { class: "mono" }, fronts),
    el("td", { class: "number" }, String(service.endpoints)), el("td", { class: "number" }, String(service.local)));
}

async function list() {
  if (listing) listing.abort();
  const mine = (listing = new AbortController());
  const query = new URLSearchParams({ search: $("search").value, which: $("which").value, offset, limit: PAGE });
  try {
    const found = await ask(`page/services?${query}`, { signal: mine.signal });
    if (offset && offset >= found.total) {
      offset = Math.max(0, PAGE * Math.floor((found.total - 1) / PAGE));
      return await list();
    }
    total = found.total;
    const focused = document.activeElement && $("list").contains(document.activeElement) ? document.activeElement.textContent : "";
    show("list", ...found.services.map(row));
    if (focused) [...$("list").querySelectorAll("button")].find((button) => button.textContent === focused)?.focus();
    const range = total ? `${(offset + 1).toLocaleString("en")} to ${(offset + found.services.length).toLocaleString("en")} of ` : "";
    const text = range + plural(total, "Service");
    if ($("range").textContent !== text) $("range").textContent = text;
    $("previous").disabled = offset === 0;
    $("next").disabled = offset + PAGE >= total;
  } catch (error) {
    if (error.name !== "AbortError") $("range").textContent = error.message;
  }
}

function turn(pages) {
  offset = Math.max(0, offset + pages * PAGE);
  list();
}

let typing = 0;
function changed() {
  clearTimeout(typing);
  typing = setTimeout(() => { offset = 0; list(); }, TYPING_MS);
}

async function detail(namespace, name, from, focus) {
  const section = $("detail");
  const mine = (opened = [namespace, name, from]);
  try {
    const query = new URLSearchParams({ namespace, name, offset: from, limit: PAGE });
    const found = await ask(`page/service?${query}`);
    if (opened !== mine) return; // it was closed, or another one was opened
    const close = () => { section.hidden = true; opened = null; $("search").focus(); };
    const go = (to) => () => detail(namespace, name, to, false);
    const end = from + found.endpoints.length;
    section.replaceChildren(
      el("h2", { id: "detail-title" }, `Service ${namespace}/${name}`),
      el("p", {}, ...states(found.service), " ", el("button", { type: "button", click: close }, "Close")),
      el("ul", { class: "warn" }, ...found.lost.map((text) => el("li", {}, text))),
      table(["Family", "Port", "Fronts", "ClusterIP", "Other fronts", "Notes"], found.ports.map((port) => [
        port.family, `${port.name} ${port.protocol}`.trim(), [...port.fronts, more(port.moreFronts)].join(" "),
        port.internal, port.external,
        [port.affinity ? `session affinity ${port.affinity} s` : "", port.topology,
          port.sourceRanges ? plural(port.sourceRanges, "source range") : ""].filter(Boolean).join(", ")])),
      el("p", { class: "dim" }, more(found.morePorts)),
      el("h3", {}, "Endpoints and their shares of new connections"),
      table(["Family", "Port", "Endpoint", "Node", "ClusterIP", "Other fronts"], found.endpoints.map((each) => [
        each.family, each.port, each.address, each.local ? "this node" : "another", percent(each.internal), percent(each.external)])),
      el("p", { class: "pager" },
        el("button", { type: "button", disabled: from === 0 && "", click: go(Math.max(0, from - PAGE)) }, "Previous"),
        el("span", { role: "status" }, found.total ? `${from + 1} to ${end} of ${plural(found.total, "endpoint")}` : "no endpoints"),
        el("button", { type: "button", disabled: end >= found.total && "", click: go(from + PAGE) }, "Next")));
  } catch (error) {
    section.replaceChildren(el("h2", { id: "detail-title" }, `Service ${namespace}/${name}`), el("p", { class: "bad" }, error.message));
  }
  section.hidden = false;
  if (focus) section.focus();
}

function table(heads, rows) {
  return el("div", { class: "wide" }, el("table", {},
    el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))),
    el("tbody", {}, ...rows.map((cells) => el("tr", {}, ...cells.map((cell) => el("td", {}, cell)))))));
}

// ---- Explain

const KERNEL = { agrees: ["holds what is planned", "good"], differs: ["differs from what is planned", "bad"], unread: ["was not compared", "warn"] };

function answered({ answer, more: left }) {
  const good = answer.verdict === "forward" || answer.verdict === "pass";
  const at = answer.to.includes(":") ? `[${answer.to}]:${answer.port}` : `${answer.to}:${answer.port}`;
  const [words, style] = KERNEL[answer.kernel];
  const lines = (items, name, text) => items.length
    ? [el("ul", { class: "mono" }, ...items.map((each) => el("li", {}, text(each)))), el("p", { class: "dim" }, more(left[name] || 0))] : [];
  return [
    el("h3", {}, `${answer.from} → ${at}/${answer.protocol} on node ${answer.node}, ${answer.mode} mode: `,
      el("span", { class: good ? "good" : "bad" }, answer.verdict)),
    el("dl", {}, ...answer.stages.flatMap((stage) => [el("dt", {}, stage.name), el("dd", {}, stage.text)]),
      el("dt", {}, "kernel"), el("dd", { class: style }, words + (answer.unread ? `: ${answer.unread}` : ""))),
    ...(answer.endpoints.length ? [el("h3", {}, "To"), table(["Endpoint", "Share", "Node", "Zone", "Source"], answer.endpoints.map((each) => [
      `${each.address} port ${each.port}`, percent(each.share), each.node, each.zone, each.masquerade ? "masqueraded" : "kept"])),
      el("p", { class: "dim" }, more(left.endpoints || 0))] : []),
    ...(answer.excluded.length ? [el("h3", {}, "Not to"), table(["Endpoint", "Reason", "EndpointSlice"], answer.excluded.map((each) => [
      each.port ? `${each.address} port ${each.port}` : each.address, each.reason + (each.detail ? `: ${each.detail}` : ""), each.slice])),
      el("p", { class: "dim" }, more(left.excluded || 0))] : []),
    ...(answer.differences.length ? [el("h3", { class: "bad" }, "Differences"), ...lines(answer.differences, "differences", (each) => each)] : []),
    ...(answer.rules.length ? [el("h3", {}, "In the kernel"), ...lines(answer.rules, "rules", (each) => each.text)] : []),
  ];
}

async function explain(event) {
  event.preventDefault();
  const body = JSON.stringify({ from: $("from").value, to: $("to").value, interface: $("interface").value });
  show("answer", "asking…");
  try {
    show("answer", ...answered(await ask("page/explain", { method: "POST", headers: { "Content-Type": "application/json" }, body })));
  } catch (error) {
    show("answer", el("p", { class: "bad" }, error.message));
  }
}

// ---- State, plots and warnings

let samples = [], warnings = [], started = 0, seen = "", timer = 0;

function plot(title, points, unit, none) {
  const [width, height, left, bottom] = [360, 130, 46, 18];
  const figure = (content, label) => el("figure", {}, el("figcaption", {}, title),
    svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label }, ...content));
  if (!points.length) return figure([svg("text", { x: left, y: height / 2 }, none)], `${title}: ${none}`);
  const values = points.map((point) => point.value);
  const first = points[0].at, span = Math.max(1, points[points.length - 1].at - first), top = Math.max(...values) || 1;
  const x = (at) => left + ((at - first) / span) * (width - left - 8);
  const y = (value) => height - bottom - (value / top) * (height - bottom - 14);
  const last = values[values.length - 1], label = `${title}: last ${unit(last)}, most ${unit(top)}, ${points.length} values`;
  return figure([
    svg("title", {}, label),
    svg("line", { class: "axis", x1: left, x2: width, y1: height - bottom, y2: height - bottom }),
    svg("line", { class: "axis", x1: left, x2: width, y1: y(top), y2: y(top) }),
    svg("text", { x: left - 4, y: y(top) + 4, "text-anchor": "end" }, unit(top)),
    svg("text", { x: left - 4, y: height - bottom + 4, "text-anchor": "end" }, "0"),
    svg("text", { x: left, y: height - 4 }, clock(first)),
    svg("text", { x: width, y: height - 4, "text-anchor": "end" }, clock(first + span)),
    ...points.map((point) => point.bar
      ? svg("line", { class: "bar", x1: x(point.at), x2: x(point.at), y1: y(0), y2: y(point.value) })
      : svg("circle", { class: point.full ? "full" : "dot", cx: x(point.at), cy: y(point.value), r: 2.5 }))], label);
}

const duration = (seconds) => (seconds < 1 ? `${(1000 * seconds).toPrecision(3)} ms` : `${seconds.toPrecision(3)} s`);

function plots() {
  const syncs = samples.map(([, at, family, full, seconds, latency, repairs]) => ({ at, family, full, seconds, latency, repairs }));
  show("plots",
    plot("Latency of changes", syncs.filter((s) => s.latency !== null).map((s) => ({ at: s.at, value: Math.max(0, s.latency), full: s.full })),
      duration, "no change with a known time yet"),
    plot("Duration of syncs", syncs.map((s) => ({ at: s.at, value: s.seconds, full: s.full })), duration, "no sync yet"),
    plot("Drift detected", syncs.filter((s) => s.repairs).map((s) => ({ at: s.at, value: s.repairs, bar: true })), String, "none"));
}

function family(each) {
  const refused = each.refused ? `, ${each.refused} refused` : "";
  const trouble = each.trouble ? `, ${plural(each.failures, "sync")} failed in a row: ${each.trouble}` : "";
  return `${each.family}: ${plural(each.services, "Service")} in the kernel, ${each.pending} pending${refused}, drift detected ${plural(each.repairs, "time")}${trouble}`;
}

async function refresh() {
  clearTimeout(timer);
  if (document.hidden) return; // an idle page asks nothing
  try {
    const last = (items, at) => (items.length ? items[items.length - 1][at] : 0);
    let state = await ask(`page/state?syncs=${last(samples, 0)}&warnings=${last(warnings, "number")}`);
    if (state.started !== started) { // another process
      [samples, warnings, started] = [[], [], state.started];
      state = await ask("page/state");
    }
    $("node").textContent = `on ${state.node}`;
    document.title = `kube-proxy on ${state.node}`;
    const [health, style] = state.ready ? ["ready", "good"] : state.healthy ? ["not ready", "warn"] : ["unhealthy", "bad"];
    if ($("health").textContent !== health) $("health").textContent = health;
    $("health").className = `badge ${style}`;
    $("about").textContent = `${state.mode} mode, version ${state.version}`;
    show("troubles", ...state.troubles.map((text) => el("li", {}, text)));
    show("families", `${plural(state.services, "Service")}, ${state.empty} without endpoints, ${state.contested} with contested fronts. `,
      ...state.families.map((each) => el("span", { class: each.refused || each.trouble ? "bad" : "dim" }, `${family(each)}. `)));
    if (state.syncs.length || !started || !$("plots").childElementCount) {
      samples = [...samples, ...state.syncs].slice(-MOST_SAMPLES);
      plots();
    }
    if (state.warnings.length || !$("warnings").childElementCount) {
      warnings = [...warnings, ...state.warnings].slice(-MOST_WARNINGS);
      show("warnings", ...[...warnings].reverse().map((each) => el("li", {}, el("span", { class: "dim" }, `${clock(each.at)} `),
        el("span", { class: each.severity === "error" ? "bad" : "warn" }, each.severity), ` ${each.message}`)),
        ...(warnings.length ? [] : [el("li", { class: "dim" }, "none")]));
    }
    $("updated").textContent = `updated ${clock(state.now)}`;
    const now = JSON.stringify([state.services, state.empty, state.contested, state.mode, state.families]);
    if (now !== seen || state.syncs.length) {
      seen = now;
      list();
      const focused = document.activeElement;
      if (opened && (focused === $("detail") || !$("detail").contains(focused))) detail(...opened, false);
    }
  } catch (error) {
    $("health").textContent = "no answer";
    $("health").className = "badge bad";
    show("troubles", el("li", {}, error.message));
    seen = "";
  }
  timer = setTimeout(refresh, REFRESH_MS);
}

$("services").addEventListener("submit", (event) => { event.preventDefault(); offset = 0; list(); });
$("search").addEventListener("input", changed);
$("which").addEventListener("change", changed);
$("previous").addEventListener("click", () => turn(-1));
$("next").addEventListener("click", () => turn(1));
$("explain").addEventListener("submit", explain);
document.addEventListener("visibilitychange", refresh);
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !event.ctrlKey && !event.metaKey && !/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) {
    event.preventDefault();
    $("search").focus();
  }
});
refresh();
