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

/**
 * The layers, each a list of places, and the ways from place to place. A place is that of a step, or a gap in which the
 * lines of a step go past a layer; `before` are the places that lead to it.
 */
function layersOf(steps) {
  const places = new Map(steps.map((step) => [step.id, { step, before: [], height: HEIGHT }]));
  const layerOf = new Map();
  const layer = ({ id, depends_on }) => {
    if (!layerOf.has(id)) {
      layerOf.set(id, 0); // a daemon has no cycles; should it ever, this ends them
      layerOf.set(id, Math.max(-1, ...depends_on.map((one) => layer(places.get(one).step))) + 1);
    }
    return layerOf.get(id);
  };
  const layers = [];
  for (const step of steps) (layers[layer(step)] ??= []).push(places.get(step.id));
  const gaps = new Map();
  const ways = steps.flatMap((step) => step.depends_on.map((id) => {
    const way = [places.get(id)];
    for (let past = layer(places.get(id).step) + 1; past < layer(step); past += 1) {
      const key = `${past} ${id}`;
      if (!gaps.has(key)) {
        gaps.set(key, { before: [way.at(-1)], height: 0 });
        layers[past].push(gaps.get(key));
      }
      way.push(gaps.get(key));
    }
    places.get(step.id).before.push(way.at(-1));
    return [...way, places.get(step.id)];
  }));
  return { layers, ways };
}

/** Give each place its `x` and `y` (of its middle). */
function arrange(layers) {
  const heights = layers.map((layer) => layer.reduce((sum, { height }) => sum + height + GAP_Y, -GAP_Y));
  const tallest = Math.max(...heights);
  layers.forEach((layer, column) => {
    const above = ({ before }) => before.reduce((sum, { y }) => sum + y, 0) / before.length;
    if (column) layer.sort((a, b) => above(a) - above(b));
    let top = MARGIN + (tallest - heights[column]) / 2;
    for (const place of layer) {
      Object.assign(place, { x: MARGIN + column * (WIDTH + GAP_X), y: top + place.height / 2 });
      top += place.height + GAP_Y;
    }
  });
  return { width: layers.length * (WIDTH + GAP_X) - GAP_X + 2 * MARGIN, height: tallest + 2 * MARGIN };
}

function drawWay(way) {
  let path = `M${way[0].x + WIDTH} ${way[0].y}`;
  way.slice(1).forEach((to, index) => {
    const from = way[index];
    const bend = to.x - GAP_X / 2;
    path += `H${from.x + WIDTH}C${bend} ${from.y} ${bend} ${to.y} ${to.x} ${to.y}`;
  });
  return s("path", { d: path, class: way.at(-1).step.when ? "edge dashed" : "edge" });
}

function drawStep({ step, x, y }, status) {
  const name = step.name || step.id;
  const short = name.length > LETTERS ? `${name.slice(0, LETTERS - 1)}…` : name;
  const kind = step.mode === "single" ? step.kind : `${step.kind}, ${step.mode}`;
  const [top, middle] = [y - HEIGHT / 2, x + WIDTH / 2];
  return s("g", { class: `node ${status}` },
    s("title", {}, `${name} ${status}`),
    s("rect", { x, y: top, width: WIDTH, height: HEIGHT, rx: step.export ? HEIGHT / 2 : 7 }),
    s("text", { x: middle, y: top + 17 }, short),
    s("text", { x: middle, y: top + 32, class: "kind" }, kind));
}

/** An SVG of the steps of a definition; `statusOf` gives the status of a step by its id, "" for none. */
export function drawGraph(steps, statusOf = () => "") {
  const { layers, ways } = layersOf(steps);
  const { width, height } = arrange(layers);
  const nodes = layers.flat().filter(({ step }) => step).map((place) => drawStep(place, statusOf(place.step.id)));
  const size = { width, height, viewBox: `0 0 ${width} ${height}` };
  // The table of steps says the same in words.
  return s("svg", { class: "graph", ...size, "aria-hidden": "true" }, ...ways.map(drawWay), ...nodes);
}
