// The map of the embeddings: the image of a dot, and the images of its class.

const MAP_REACH = 24; // largest distance of a click from its dot, in pixels of the screen

const showMap = (map) => {
  const { images, classes } = JSON.parse(document.getElementById("map-images").textContent);
  const svg = map.querySelector("svg");
  const dots = [...svg.querySelectorAll("circle")];
  const detail = node("div", "place-detail", node("p", "note", "no image chosen"));

  const choose = (index) => {
    const one = images[index];
    chooser.box.value = one.class;
    markClass(one.class, index);
    detail.replaceChildren(
      node("figure", "", image(one.picture, "", one.name), node("figcaption", "", node("b", "", one.class), node("br", ""), one.name)),
      node("p", "", node("span", one.right ? "yes" : "no", one.right ? "✓" : "✗"), ` nearest image: ${one.nearest}, cosine ${one.score}`),
      strip(one.class),
    );
  };
  const markClass = (name, index) => {
    map.classList.toggle("one-class", name !== "");
    dots.forEach((dot, place) => {
      dot.classList.toggle("of-class", images[place].class === name);
      dot.classList.toggle("chosen", place === index);
    });
  };
  const strip = (name) => {
    const places = images.flatMap((one, place) => (one.class === name ? [place] : []));
    return node("div", "strip", ...places.map((place) => {
      const button = node("button", "", image(images[place].picture, "", images[place].name));
      button.type = "button";
      button.addEventListener("click", () => choose(place));
      return button;
    }));
  };
  const chooser = select("class", [["", `all ${classes.length} classes`], ...classes.map((name) => [name, name])], (name) => {
    markClass(name, -1);
    detail.replaceChildren(...(name ? [strip(name)] : []));
  });
  const closestDot = (event) => {
    const distances = dots.map((dot) => {
      const { x, y, width, height } = dot.getBoundingClientRect();
      return Math.hypot(x + width / 2 - event.clientX, y + height / 2 - event.clientY);
    });
    const least = Math.min(...distances);
    return least <= MAP_REACH ? distances.indexOf(least) : -1;
  };
  svg.addEventListener("click", (event) => {
    const index = closestDot(event);
    if (index >= 0) choose(index);
  });
  map.append(node("div", "", node("div", "filters", chooser.field), detail));
};
const mapBox = document.getElementById("map");
if (mapBox) showMap(mapBox);
