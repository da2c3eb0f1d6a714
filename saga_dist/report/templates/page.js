// The switch of the pooler's attention, and the hint beside tables that are wider than the page.

const setHeat = (on) => {
  document.body.classList.toggle("heats", on);
  for (const input of document.querySelectorAll(".heat-switch")) input.checked = on;
};
for (const input of document.querySelectorAll(".heat-switch")) {
  input.addEventListener("change", () => setHeat(input.checked));
}

const widths = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const box = target.closest(".scroll");
    box.classList.toggle("overflows", box.scrollWidth > box.clientWidth + 1);
  }
});
const watchWidth = (box) => {
  widths.observe(box);
  widths.observe(box.firstElementChild);
};
for (const box of document.querySelectorAll(".scroll")) watchWidth(box);
