// Elements for the other scripts. Text only ever becomes text nodes, never markup.

const node = (tag, className, ...children) => {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
};

const image = (source, className, alt) => {
  const made = node("img", className);
  made.src = source;
  made.alt = alt;
  return made;
};

const select = (label, options, onChange) => {
  const box = node("select", "");
  for (const [value, text] of options) {
    const option = node("option", "", text);
    option.value = value;
    box.append(option);
  }
  box.addEventListener("change", () => onChange(box.value));
  box.setAttribute("aria-label", label);
  return { box, field: node("label", "", label, box) };
};
