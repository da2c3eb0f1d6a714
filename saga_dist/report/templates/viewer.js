// The rollout viewer: a list of groups with filters, and one group with its images and completions.

const PAGE = 60; // groups in the list at a time

const showViewer = (root) => {
  const { groups, prompt } = JSON.parse(document.getElementById("groups").textContent);
  const state = { step: "", pair: "", truth: "", outcome: "", page: 0, current: groups[0], colour: "plain", overlay: "pooler", promptOpen: false };

  const kindOf = (completion) => (completion.verdict === null ? "void" : completion.right ? "yes" : "no");
  const pairOf = (group) => [...group.classes].sort().join(" ↔ ");
  const OUTCOMES = {
    mixed: ["some right, some wrong", (kinds) => kinds.includes("yes") && kinds.some((kind) => kind !== "yes")],
    equal: ["all equal: no gradient", (kinds, group) => !group.contributes],
    right: ["all right", (kinds) => kinds.every((kind) => kind === "yes")],
    wrong: ["any wrong", (kinds) => kinds.includes("no")],
    none: ["none right", (kinds) => !kinds.includes("yes")],
    void: ["any without a verdict", (kinds) => kinds.includes("void")],
  };

  const matching = () =>
    groups.filter(
      (group) =>
        (state.step === "" || String(group.step) === state.step) &&
        (state.pair === "" || pairOf(group) === state.pair) &&
        (state.truth === "" || String(group.same) === state.truth) &&
        (state.outcome === "" || OUTCOMES[state.outcome][1](group.completions.map(kindOf), group)),
    );

  // ---------------------------------------------------------------- the list

  const list = node("div", "list");
  const pager = node("div", "pager");
  const detail = node("div", "detail");

  function showList() {
    const found = matching();
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    state.page = Math.min(state.page, pages - 1);
    const part = found.slice(state.page * PAGE, (state.page + 1) * PAGE);
    list.replaceChildren(...part.map(item));
    if (!found.length) list.append(node("p", "note", "  no group like this"));
    const turn = (label, by, possible) => {
      const button = node("button", "", label);
      button.disabled = !possible;
      button.addEventListener("click", () => { state.page += by; showList(); });
      return button;
    };
    pager.replaceChildren(
      node("span", "", `${found.length} of ${groups.length} groups`),
      ...(pages > 1
        ? [turn("‹", -1, state.page > 0), node("span", "", `${state.page + 1} / ${pages}`), turn("›", 1, state.page < pages - 1)]
        : []),
    );
  }

  function item(group) {
    const names = group.classes[0] === group.classes[1] ? group.classes[0] : `${group.classes[0]} ↔ ${group.classes[1]}`;
    const button = node(
      "button", "item",
      node("div", "top", node("span", "", `step ${group.step}`), node("span", "", group.same ? "same" : "different")),
      node("div", "names", names),
      dots(group),
    );
    button.type = "button";
    button.dataset.id = group.id;
    button.setAttribute("aria-current", String(group === state.current));
    button.addEventListener("click", () => {
      state.current = group;
      for (const other of list.children) other.setAttribute("aria-current", String(other === button));
      showDetail();
      if (detail.getBoundingClientRect().top > window.innerHeight * 0.7) detail.scrollIntoView();
    });
    return button;
  }

  function dots(group) {
    const box = node("div", "dots", ...group.completions.map((one) => node("i", kindOf(one))));
    const right = group.completions.filter((one) => one.right).length;
    box.title = `${right} of ${group.completions.length} right`;
    return box;
  }

  // ---------------------------------------------------------------- one group

  function showDetail() {
    const group = state.current;
    if (!group) { detail.replaceChildren(); return; }
    const tags = [
      group.same ? "one class" : "two classes",
      `step ${group.step}`,
      `encoder version ${group.version}`,
      `staleness ${group.staleness}`,
      group.contributes ? "carries a gradient" : "no gradient",
      `temperature ${group.temperature}`,
    ];
    const colouring = select("colour tokens by", [
      ["plain", "nothing"], ["log_prob", "log-probability"], ["gradient", "advantage × gradient"], ["describes", "described image"],
      ["mismatch", "engine − replay"],
    ], (value) => { state.colour = value; showTexts(); });
    colouring.box.id = "colour";
    colouring.box.value = state.colour;
    const names = ["pooler", "none", ...group.overlays.map((one) => one.name)];
    if (!names.includes(state.overlay)) state.overlay = "pooler";
    const overlay = select("show attention of", names.map((name) => [name, name]), (value) => { state.overlay = value; showDuo(); });
    overlay.box.value = state.overlay;
    const duo = node("div", "duo");
    const texts = node("div", "texts");
    const key = node("div", "key");
    const showDuo = () => duo.replaceChildren(...group.images.map((one, side) => picture(group, one, side)));
    const showTexts = () => {
      key.textContent = KEYS[state.colour];
      texts.replaceChildren(...group.completions.map(card));
    };
    detail.replaceChildren(
      node("h3", "", group.id),
      node("ul", "tags", ...tags.map((tag) => node("li", "", tag))),
      duo,
      promptBox(),
      group.attributes.length ? agreementTable(group, kindOf) : "",
      node("div", "tools", group.images.length ? overlay.field : null, colouring.field),
      key,
      texts,
    );
    showDuo();
    showTexts();
  }

  function promptBox() {
    const box = node("details", "prompt", node("summary", "", "the prompt"), node("pre", "", prompt));
    box.open = state.promptOpen;
    box.addEventListener("toggle", () => { state.promptOpen = box.open; });
    return box;
  }

  function picture(group, one, side) {
    const chosen = group.overlays.find((one) => one.name === state.overlay);
    const source = state.overlay === "pooler" ? one.heat : chosen ? chosen.heat[side] : "";
    const frame = node("span", "frame", image(one.picture, "", group.classes[side]), source ? image(source, "heat", "") : null);
    return node("figure", "", frame, node("figcaption", "", group.classes[side]));
  }

  function card(one, index) {
    const kind = kindOf(one);
    const said = { void: "no verdict", yes: one.verdict ? "same" : "different", no: one.verdict ? "same" : "different" }[kind];
    const body = node("div", "body");
    if (one.pieces) {
      one.pieces.forEach((piece, place) => body.append(token(piece, place, one)));
      if (one.left_out) body.append(node("span", "", ` … (${one.left_out} more characters)`));
    } else {
      body.append(one.text);
    }
    return node(
      "article", `text ${kind}`,
      node("div", "said", node("span", kind, `${VERDICT_MARKS[kind]} ${said}`), node("span", "note", `#${index}`)),
      node("div", "figures", `reward ${one.reward} · advantage ${signed(one.advantage)} · ${one.tokens} tokens · ${one.finish} · log p ${signed(one.mean_log_prob)}${one.mean_gap === undefined ? "" : ` · mismatch ${one.mean_gap}`}`),
      body,
    );
  }

  const KEYS = {
    plain: "",
    log_prob: "Stronger: less expected by the model. Hover for the number.",
    gradient: "Blue pushes the token up, orange down; the strength is |advantage| × (1 − p), the size of the policy gradient at its logit.",
    describes: "Blue: describes the first image. Orange: the second.",
    mismatch: "Engine and replay on the same token; blue: replay finds it likelier, orange: less likely. Full strength from 0.1 nats on. Groups that did not train were not replayed.",
  };

  function token(piece, place, one) {
    const span = node("span", "", piece);
    const p = one.log_probs[place];
    const paint = (name, strength) => {
      if (strength > 0.02) span.style.backgroundColor = `color-mix(in srgb, var(${name}) ${Math.round(100 * Math.min(strength, 0.7))}%, transparent)`;
    };
    span.title = `log p ${p}`;
    if (state.colour === "log_prob") paint("--s3", -p / 4);
    if (state.colour === "gradient") {
      const weight = one.advantage * (1 - Math.exp(Math.min(p, 0)));
      span.title += `, gradient ${signed(Number(weight.toFixed(3)))}`;
      paint(weight < 0 ? "--s1" : "--s0", Math.abs(weight) * 0.7);
    }
    if (one.gaps) {
      span.title += `, replay ${signed(one.gaps[place])}`;
      if (state.colour === "mismatch") paint(one.gaps[place] < 0 ? "--s1" : "--s0", Math.abs(one.gaps[place]) * 7);
    }
    if (state.colour === "describes" && one.describes[place]) paint(one.describes[place] === 1 ? "--s0" : "--s1", 0.28);
    return span;
  }

  const signed = (value) => (value > 0 ? `+${value}` : String(value).replace("-", "−"));

  // ---------------------------------------------------------------- filters

  const change = (name) => (value) => { state[name] = value; state.page = 0; showList(); };
  const steps = [...new Set(groups.map((group) => group.step))].sort((a, b) => a - b);
  const pairs = [...new Set(groups.map(pairOf))].sort();
  const filters = [
    select("step", [["", `all ${steps.length}`], ...steps.map((step) => [String(step), String(step)])], change("step")),
    select("truth", [["", "same or different"], ["true", "one class"], ["false", "two classes"]], change("truth")),
    select("outcome", [["", "any"], ...Object.entries(OUTCOMES).map(([value, [text]]) => [value, text])], change("outcome")),
    select("classes", [["", `all ${pairs.length} pairs`], ...pairs.map((pair) => [pair, pair])], change("pair")),
  ];
  root.append(
    node("div", "filters", ...filters.map((one) => one.field)),
    node("div", "viewer", node("div", "", list, pager), detail),
  );
  showList();
  showDetail();
};
const viewerBox = document.getElementById("viewer");
if (viewerBox) showViewer(viewerBox);
