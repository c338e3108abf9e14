// The flame graph of the page, which has this file in it, and the helpers used here.
// Callers stand above what they call; a function is as wide as the bytes that it, and what it called,
// hold. One function at a time can be zoomed to, and takes the whole width then.
const STEP = 22, LEAST = 1.5;
const flame = $("flame"), SVG = "http://www.w3.org/2000/svg";
let taken = null;               // {service, tree, interval, time}: what is drawn
let zoomed = null;              // the node that has the whole width
let wanted = 0;                 // counts requests: an older answer must not replace a newer one

function picker(name) {
  const button = el("button", "name pick", named(name));
  button.type = "button";
  button.title = "Show which code holds it";
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", () => takeProfile(name));
  return button;
}

const functions = () => document.querySelector("[name=functions]:checked").value;

async function takeProfile(service) {
  const number = ++wanted;
  for (const [name, tr] of rows) tr.querySelector(".pick").setAttribute("aria-pressed", name === service);
  set($("h-flame"), `Which code holds it: ${named(service)}`);
  set($("flame-note"), "Looking at the call stacks …");
  $("again").disabled = true;
  try {
    // Names are looked up in the program's debug information, which takes its time.
    const query = new URLSearchParams({ service, functions: functions() });
    const answer = await fetch(`profile.json?${query}`, { cache: "no-store", signal: AbortSignal.timeout(60000) });
    const said = await answer.json();
    if (!answer.ok) throw new Error(said.error ?? `HTTP ${answer.status}`);
    if (number !== wanted) return;
    const path = zoomed && taken?.service === service ? pathOf(zoomed).map(n => n.name) : [];
    taken = { ...said, service, tree: treeOf(said.nodes) };
    zoomed = taken.tree;
    // Where the reader was, as far as it is still there.
    for (const name of path.slice(1)) zoomed = zoomed.children.find(n => n.name === name) ?? zoomed;
    const few = taken.dropped > 0 ? `; ${taken.dropped.toLocaleString()} samples were dropped` : "";
    set($("flame-note"), taken.tree.bytes === 0 ? "It holds nothing." :
      `Taken ${time(taken.time)}, a sample each ${bytes(taken.interval)} on average${few}. The program's own functions are orange. Click on a function, or press Enter, to zoom in; Escape zooms out, arrow keys move.`);
    flame.dataset.state = "drawn";
  } catch (error) {
    if (number !== wanted) return;
    taken = zoomed = null;
    flame.dataset.state = "failed";
    set($("flame-note"), `No profile: ${error.name === "TimeoutError" ? "no answer in time" : error.name === "TypeError" ? "no connection" : error.message}`);
  }
  flame.dataset.service = service;
  $("again").disabled = false;
  drawFlame();
  tell(zoomed);
}

// The nodes come one after the other, each followed by those that it calls.
function treeOf(nodes) {
  const path = [];
  for (const node of nodes) {
    path.length = node.depth;
    node.children = [];
    node.parent = path.at(-1) ?? null;
    node.parent?.children.push(node);
    path.push(node);
  }
  return nodes[0];
}

function pathOf(node) {
  const path = [];
  for (; node; node = node.parent) path.unshift(node);
  return path;
}

// `<alloc::vec::Vec<T> as Extend<T>>::extend` is long: the last two names, without what is in brackets.
function short(name) {
  if (name.startsWith("[")) return name;
  let depth = 0, plain = "";
  for (const c of name.replaceAll("->", "")) {
    if (c === "<") depth++;
    else if (c === ">") depth--;
    else if (depth === 0) plain += c;
  }
  const parts = plain.split("::").filter(Boolean);
  // Of a trait's method the type is in brackets; its last name says more.
  if (name.startsWith("<")) {
    const type = name.slice(1).replace(/^[&*]?(mut |const |dyn )*/, "").match(/^[\w:]+/);
    if (type) parts.unshift(type[0].split("::").filter(Boolean).at(-1));
  }
  return parts.slice(-2).join("::") || name;
}

const whole = () => taken.tree.bytes;

function words(node) {
  const doubt = node.standard_error > 0 && node.parent ? ` ± ${bytes(node.standard_error)}` : "";
  const blocks = `${node.objects.toLocaleString()} ${node.objects === 1 ? "block" : "blocks"}`;
  const samples = `${node.samples.toLocaleString()} ${node.samples === 1 ? "sample" : "samples"}`;
  return `${bytes(node.bytes)}${doubt}, ${share(node.bytes, whole())}, ${blocks}, ${samples}`;
}

function tell(node) {
  const said = $("flame-said");
  if (!node) { said.replaceChildren(); return; }
  said.replaceChildren(el("b", "name", node.parent ? node.name : named(taken.service)), ` ${words(node)}`);
}

function drawFlame() {
  const held = flame.contains(document.activeElement);
  flame.dataset.zoom = zoomed?.name ?? "";
  if (!taken || whole() === 0) { flame.replaceChildren(); return; }
  const width = flame.clientWidth, svg = document.createElementNS(SVG, "svg");
  pen.font = `12px ${paint.font}`;
  let deepest = 0;
  const put = (node, x, w, depth) => {
    deepest = Math.max(deepest, depth);
    const g = document.createElementNS(SVG, "g"), rect = document.createElementNS(SVG, "rect");
    const past = depth < pathOf(zoomed).length - 1;
    g.setAttribute("class", `${node.parent ? node.own ? "own" : "" : "root"}${past ? " past" : ""}`.trim());
    g.setAttribute("role", "treeitem");
    g.setAttribute("aria-level", depth + 1);
    g.setAttribute("aria-label", `${node.parent ? node.name : named(taken.service)}, ${words(node)}`);
    if (node.children.length) g.setAttribute("aria-expanded", "true");
    g.tabIndex = node === zoomed ? 0 : -1;
    g.dataset.name = node.name;
    g.dataset.bytes = node.bytes;
    for (const [name, value] of [["x", x], ["y", depth * STEP], ["width", w], ["height", STEP]]) rect.setAttribute(name, value);
    g.append(rect);
    if (w > 24) {
      const text = document.createElementNS(SVG, "text"), label = node.parent ? short(node.name) : named(taken.service);
      const full = `${label}  ${bytes(node.bytes)}`;
      text.textContent = pen.measureText(full).width <= w - 10 ? full : fitText(label, w - 18);
      text.setAttribute("x", x + 5);
      text.setAttribute("y", depth * STEP + 15);
      g.append(text);
    }
    g.addEventListener("click", () => zoom(node));
    g.addEventListener("pointerenter", () => tell(node));
    g.addEventListener("focus", () => tell(node));
    g.addEventListener("keydown", event => flameKey(event, node));
    node.shape = g;
    svg.append(g);
  };
  const spread = (node, x, w, depth) => {
    put(node, x, w, depth);
    for (const child of node.children) {
      const part = node.bytes > 0 ? Math.max(0, child.bytes) / node.bytes * w : 0;
      child.shape = null;
      if (part >= LEAST) spread(child, x, part, depth + 1);
      x += part;
    }
  };
  const path = pathOf(zoomed);
  path.slice(0, -1).forEach((node, depth) => {
    for (const child of node.children) child.shape = null;
    put(node, 0, width, depth);
  });
  spread(zoomed, 0, width, path.length - 1);
  svg.setAttribute("role", "tree");
  svg.setAttribute("aria-label", `What ${named(taken.service)} holds, by function`);
  svg.setAttribute("height", (deepest + 1) * STEP + 2);
  flame.replaceChildren(svg);
  if (held) zoomed.shape.focus({ preventScroll: true });
}

function zoom(node) {
  zoomed = node;
  drawFlame();
  node.shape.focus({ preventScroll: true });
}

function flameKey(event, node) {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const drawn = list => list.filter(n => n.shape?.isConnected), beside = drawn(node.parent?.children ?? [node]);
  const at = beside.indexOf(node);
  const next = { ArrowUp: node.parent, ArrowDown: drawn(node.children)[0], ArrowLeft: beside[at - 1],
                 ArrowRight: beside[at + 1], Home: taken.tree }[event.key];
  if (event.key === "Enter" || event.key === " ") zoom(node);
  else if (event.key === "Escape") zoom(zoomed.parent ?? taken.tree);
  else if (next?.shape) {
    node.shape.tabIndex = -1;
    next.shape.tabIndex = 0;
    next.shape.focus();
  } else if (!event.key.startsWith("Arrow")) return;
  event.preventDefault();
}

flame.addEventListener("pointerleave", () => tell(zoomed));
$("again").addEventListener("click", () => takeProfile(flame.dataset.service));
for (const input of document.querySelectorAll("[name=functions]"))
  input.addEventListener("change", () => { if (flame.dataset.state !== "empty") takeProfile(flame.dataset.service); });

let flameWidth = 0;
new ResizeObserver(() => {
  if (flame.clientWidth === flameWidth) return;
  flameWidth = flame.clientWidth;
  drawFlame();
}).observe(flame);
