// Values of all lines of a chart at the step under the pointer.

const NEAR = 5; // largest distance of a line's point from the pointed step, in units of the view box

const linesOf = (svg) =>
  [...svg.querySelectorAll("polyline")]
    .filter((line) => line.dataset.steps)
    .map((line) => ({
      label: line.dataset.label,
      mark: line.getAttribute("class").replace(/^line s/, "k"),
      steps: line.dataset.steps.split("|"),
      values: line.dataset.values.split("|"),
      places: line.getAttribute("points").split(" ").map((point) => Number(point.split(",")[0])),
    }));

const nearestIndex = (places, x) =>
  places.reduce((best, place, index) => (Math.abs(place - x) < Math.abs(places[best] - x) ? index : best), 0);

const showValues = (svg, lines, cursor, tip, x) => {
  const found = lines.map((line) => ({ line, index: nearestIndex(line.places, x) }));
  const distance = ({ line, index }) => Math.abs(line.places[index] - x);
  const closest = found.reduce((best, one) => (distance(one) < distance(best) ? one : best));
  const place = closest.line.places[closest.index];
  const beside = found.filter(({ line, index }) => Math.abs(line.places[index] - place) <= NEAR);
  tip.replaceChildren(
    node("b", "", `step ${closest.line.steps[closest.index]}`),
    node("ul", "legend", ...beside.map(({ line, index }) => node("li", line.mark, `${line.label} `, node("b", "", line.values[index])))),
  );
  cursor.setAttribute("x1", place);
  cursor.setAttribute("x2", place);
  svg.parentElement.classList.add("pointed");
  const share = place / svg.viewBox.baseVal.width;
  tip.style.left = share < 0.5 ? `${100 * share}%` : "";
  tip.style.right = share < 0.5 ? "" : `${100 * (1 - share)}%`;
};

const watchChart = (svg) => {
  const lines = linesOf(svg);
  if (!lines.length) return;
  const heights = [...svg.querySelectorAll("line.grid")].map((line) => Number(line.getAttribute("y1")));
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
  cursor.setAttribute("class", "cursor");
  cursor.setAttribute("y1", Math.min(...heights));
  cursor.setAttribute("y2", Math.max(...heights));
  svg.append(cursor);
  const tip = node("div", "tip");
  svg.after(tip);
  const point = (event) => {
    const box = svg.getBoundingClientRect();
    showValues(svg, lines, cursor, tip, ((event.clientX - box.left) * svg.viewBox.baseVal.width) / box.width);
  };
  svg.addEventListener("pointerdown", point);
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerleave", () => svg.parentElement.classList.remove("pointed"));
};
for (const svg of document.querySelectorAll(".chart svg")) watchChart(svg);
