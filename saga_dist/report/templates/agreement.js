// What the completions of a group say of each attribute, side by side.

const AGREEMENT_NOTE =
  "Marked: not what most completions say of the image. ≠: this completion describes the two images differently.";

const VERDICT_MARKS = { void: "–", yes: "✓", no: "✗" };

const agreementTable = (group, kindOf) => {
  const total = group.completions.length;
  const heads = group.completions.map((one, index) => node("th", kindOf(one), `#${index} ${VERDICT_MARKS[kindOf(one)]}`));
  const rows = group.attributes.flatMap((row) => [agreementRow(row, "a", total), agreementRow(row, "b", total)]);
  const table = node("table", "agreement",
    node("thead", "", node("tr", "", node("th", "", "attribute"), node("th", "", "image"), node("th", "", "agree"), ...heads)),
    node("tbody", "", ...rows));
  const box = node("div", "scroll", table);
  box.tabIndex = 0;
  watchWidth(box);
  return node("div", "", node("h4", "", "Attributes of the completions"), node("p", "key", AGREEMENT_NOTE), box);
};

const agreementRow = (row, side, total) => {
  const { values, common, agree } = row[side];
  const name = node("th", "", row.name);
  name.rowSpan = 2;
  const cells = values.map((value, index) => {
    const differs = side === "b" && value !== null && row.a.values[index] !== null && value !== row.a.values[index];
    const kind = value === null ? "gap" : value === common ? "" : "odd";
    return node("td", kind, value === null ? "–" : value, differs ? node("span", "note", " ≠") : null);
  });
  const share = node("td", agree < total ? "odd-count" : "", `${agree} of ${total}`);
  return node("tr", side === "a" ? "first" : "", side === "a" ? name : null, node("td", "", side === "a" ? "1" : "2"), share, ...cells);
};
