// Draws steps and what they depend on, in layers from the left.

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN] = [158, 40, 44, 14, 6];
const LETTERS = 19; // of a name fit into a box

function s(name, attributes, ...children) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/** An SVG of the steps of a definition; `statusOf` gives the status of a step by its id, "" for none. */
export function drawGraph(steps, statusOf = () => "") {
  const known = new Map(steps.map((step) => [step.id, step]));
  const layerOf = new Map();
  const depth = (step) => {
    if (!layerOf.has(step.id)) {
      layerOf.set(step.id, 0); // a daemon has no cycles; should it ever, this ends them
      layerOf.set(step.id, Math.max(-1, ...step.depends_on.map((id) => depth(known.get(id)))) + 1);
    }
    return layerOf.get(step.id);
  };
  const layers = [];
  for (const step of steps) (layers[depth(step)] ??= []).push(step);
  const tallest = Math.max(...layers.map((layer) => layer.length));
  const at = new Map();
  layers.forEach((layer, column) => {
    const above = (step) => step.depends_on.reduce((sum, id) => sum + at.get(id).y, 0) / (step.depends_on.length || 1);
    if (column) layer.sort((a, b) => above(a) - above(b));
    const top = MARGIN + ((tallest - layer.length) * (HEIGHT + GAP_Y)) / 2;
    layer.forEach((step, row) => at.set(step.id, { x: MARGIN + column * (WIDTH + GAP_X), y: top + row * (HEIGHT + GAP_Y) }));
  });
  const edges = steps.flatMap((step) => step.depends_on.map((id) => {
    const [from, to] = [at.get(id), at.get(step.id)];
    const [x1, y1, x2, y2] = [from.x + WIDTH, from.y + HEIGHT / 2, to.x, to.y + HEIGHT / 2];
    const bend = (x1 + x2) / 2;
    return s("path", { d: `M${x1} ${y1}C${bend} ${y1} ${bend} ${y2} ${x2} ${y2}`, class: step.when ? "edge dashed" : "edge" });
  }));
  const nodes = steps.map((step) => {
    const { x, y } = at.get(step.id);
    const name = step.name || step.id;
    const short = name.length > LETTERS ? `${name.slice(0, LETTERS - 1)}…` : name;
    return s("g", { class: `node ${statusOf(step.id)}` },
      s("title", {}, `${name} ${statusOf(step.id)}`),
      s("rect", { x, y, width: WIDTH, height: HEIGHT, rx: step.export ? HEIGHT / 2 : 7 }),
      s("text", { x: x + WIDTH / 2, y: y + 17 }, short),
      s("text", { x: x + WIDTH / 2, y: y + 32, class: "kind" }, step.mode === "single" ? step.kind : `${step.kind}, ${step.mode}`));
  });
  const [width, height] = [layers.length * (WIDTH + GAP_X) - GAP_X + 2 * MARGIN, tallest * (HEIGHT + GAP_Y) - GAP_Y + 2 * MARGIN];
  return s("svg", { class: "graph", width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" }, ...edges, ...nodes);
}
