// The page: keeps the state, runs the optimizers anew when it changes, and shows what came of it.
"use strict";

const Explorer = (() => {
  const { element } = Controls;
  const $ = (id) => document.getElementById(id);
  const AXES = ["x", "y"];

  let state = State.DEFAULT;
  let runs = [];
  let ran = null; // the state that `runs` are of
  let playing = null; // the timer while it plays

  // ----------------------------------------------------------------------------------------------
  // What is seen of a step. Each row of strips has a title, and a value per step and coordinate.

  const ROWS = [
    { id: "gradient", title: () => "gradient g", value: (run, step, n) => step.gradient[n] },
    {
      id: "average",
      title: (run) =>
        run.average ? `average of g: ${run.average}` : "average of g: it keeps none",
      value: (run, step, n) => (run.average ? step.state[run.average][n] : null),
    },
    {
      id: "square",
      title: (run) =>
        run.square ? `average of g²: ${run.square}` : "average of g²: it keeps none",
      value: (run, step, n) => (run.square ? step.state[run.square][n] : null),
    },
    { id: "update", title: () => "step", value: (run, step, n) => step.update[n] },
    {
      id: "rate",
      title: (run) => `rate in effect: step ÷ ${run.average ?? "g"}`,
      value: (run, step, n) => {
        const along = run.average ? step.state[run.average][n] : step.gradient[n];
        return along === 0 ? NaN : -step.update[n] / along;
      },
    },
  ];

  // The share that is kept per step of the average ("average") or of that of squares ("square").
  const KEPT = {
    SGD: { average: (o) => o.momentum },
    Momentum: { average: (o) => o.beta },
    RMSprop: { average: (o) => o.beta, square: (o) => o.beta },
    Adadelta: { square: (o) => o.rho },
  };
  const WITH_BETAS = [
    "Adam",
    "AdamW",
    "NAdam",
    "RAdam",
    "AdaBelief",
    "AdEMAMix",
    "AdamAtan2",
    "OptimisticAdam",
  ];
  for (const name of WITH_BETAS) {
    KEPT[name] = { average: (o) => o.betas[0], square: (o) => o.betas[1] };
  }

  // How many of the newest steps carry 90 % of an average in step t; 0 if that is not known.
  function memory(i, kind, t) {
    const run = runs[i];
    const kept = (KEPT[state.optimizers[i].name] ?? {})[kind];
    if (!kept || !run[kind] || t < 1) return 0;
    const beta = kept(run.options);
    if (beta === 0) return 1;
    const whole = 1 - Math.pow(beta, t);
    for (let n = 1; n < t; n += 1) if (1 - Math.pow(beta, n) >= 0.9 * whole) return n;
    return t;
  }

  const axes = () => Surfaces.ALL[state.surface].axes;

  const label = (i) => {
    const { name } = state.optimizers[i];
    const twice = state.optimizers.filter((one) => one.name === name).length > 1;
    return twice ? `${name} ${"ABCD"[i]}` : name;
  };

  // ----------------------------------------------------------------------------------------------
  // Changes.

  const CAUSES = [
    "surface",
    "condition",
    "formula",
    "start",
    "steps",
    "noise",
    "batch",
    "seed",
    "optimizers",
  ];

  function calculate() {
    if (ran !== null && CAUSES.every((key) => State.same(ran[key], state[key]))) return;
    runs = state.optimizers.map((one) => Runs.run(state, one));
    ran = state;
  }

  // Takes over a part of a state. Returns what is wrong with it, in words, and then changes nothing.
  function set(patch, { fields = true } = {}) {
    let next;
    try {
      next = State.completed(patch, state);
    } catch (wrong) {
      return wrong.message;
    }
    const before = state;
    state = next;
    calculate();
    if (before.theme !== state.theme) applyTheme();
    const otherNames = !State.same(
      before.optimizers.map((o) => o.name),
      state.optimizers.map((o) => o.name),
    );
    if (fields || otherNames) buildFields();
    if (fields || otherNames) buildLegend();
    show();
    return undefined;
  }

  function setStep(t) {
    state = { ...state, t: Math.min(state.steps, Math.max(0, t)) };
    show();
  }

  function pause() {
    if (playing === null) return;
    clearInterval(playing);
    playing = null;
    $("play").classList.remove("playing");
    $("play").setAttribute("aria-label", "Play");
    $("status").setAttribute("aria-live", "polite");
    showStatus();
  }

  function play() {
    if (playing !== null) return pause();
    if (state.t >= state.steps) setStep(0);
    $("play").classList.add("playing");
    $("play").setAttribute("aria-label", "Pause");
    $("status").setAttribute("aria-live", "off"); // or each step would be read out
    playing = setInterval(
      () => {
        setStep(state.t + 1);
        if (state.t >= state.steps) pause();
      },
      state.steps > 150 ? 60 : 140,
    );
    return undefined;
  }

  // ----------------------------------------------------------------------------------------------
  // The picture.

  let view = [0, 0, 10];

  function show() {
    showSurface();
    showStrips();
    showPlayer();
    showLines();
    showStatus();
    if ($("tablebox").open) showTable();
    keepLink();
  }

  // What is seen of the plane: so much that the start is in it; nearer, it is the lowest point.
  function viewOf({ surface, start, zoom }) {
    const {
      view: [x, y, width],
      goals,
    } = Surfaces.ALL[surface];
    if (zoom > 1) return [...(goals[0] ?? [x, y]), width / zoom];
    const [dx, dy] = [Math.abs(start[0] - x), Math.abs(start[1] - y)];
    return [x, y, Math.max(width, 2.2 * dx, (2.2 * dy) / Drawing.RATIO) / zoom];
  }

  function showSurface() {
    view = viewOf(state);
    const { value } = Runs.gradients(state);
    const key = [state.surface, state.condition, state.formula].join("|");
    const goals = Surfaces.ALL[state.surface].goals;
    Drawing.surface($("surface"), {
      key,
      value,
      view,
      goals,
      axes: axes(),
      runs,
      t: state.t,
      focus: state.focus,
    });
    const name = Surfaces.ALL[state.surface].title;
    $("surface").setAttribute(
      "aria-label",
      `${name}, seen from above, with the paths of ${state.optimizers.map((_, i) => label(i)).join(", ")}`,
    );
    placeStart();
  }

  function placeStart() {
    const { width, height } = $("surface").getBoundingClientRect();
    const [x, y] = Drawing.mapping(view, width, height).to(state.start);
    const inside = (at, most) => Math.min(most - 12, Math.max(12, at));
    $("start").style.left = `${inside(x, width)}px`;
    $("start").style.top = `${inside(y, height)}px`;
    $("start").hidden = x < -12 || x > width + 12 || y < -12 || y > height + 12;
    $("start").classList.toggle("low", y < 30);
    $("out").disabled = state.zoom <= State.ZOOMS[0];
    $("in").disabled = state.zoom >= State.ZOOMS.at(-1);
  }

  function showPlayer() {
    $("t").max = state.steps;
    $("t").value = state.t;
    $("t").setAttribute("aria-valuetext", `step ${state.t} of ${state.steps}`);
    $("stepname").textContent = `Step ${state.t}`;
    $("ofsteps").textContent = `of ${state.steps}`;
    $("first").disabled = state.t === 0;
    $("back").disabled = state.t === 0;
    $("forward").disabled = state.t === state.steps;
    document.querySelector(".sign.went").style.borderTopColor = `var(--run-${state.focus})`;
  }

  function buildStrips() {
    $("grid").append(element("div", { class: "column" }), element("div", { class: "column" }));
    for (const row of ROWS) {
      for (const n of [0, 1]) {
        const canvas = element("canvas", { role: "img", id: `strip-${row.id}-${AXES[n]}` });
        const choose = (event) => {
          pause();
          setStep(Drawing.stepAt(canvas, event.clientX, state.steps));
        };
        canvas.addEventListener("pointerdown", (event) => {
          canvas.setPointerCapture(event.pointerId);
          choose(event);
        });
        canvas.addEventListener("pointermove", (event) => event.buttons && choose(event));
        $("grid").append(
          element(
            "div",
            { class: "strip" },
            element(
              "div",
              { class: "head" },
              element("b", {}),
              element("output", { "aria-live": "off" }),
            ),
            canvas,
            element("div", { class: "range", "aria-hidden": "true" }),
          ),
        );
      }
    }
  }

  // The steps after which an epoch ends, if there are mini-batches.
  function borders() {
    if (!(state.noise > 0)) return [];
    const each = Surfaces.EXAMPLES / state.batch;
    const found = [];
    for (let t = each; t < state.steps; t += each) found.push(t);
    return each * 80 < state.steps ? [] : found;
  }

  function showStrips() {
    const run = runs[state.focus];
    const step = run.steps[state.t - 1];
    const ends = borders();
    axes().forEach((text, n) => ($("grid").children[n].textContent = text));
    const average = memory(state.focus, "average", state.t);
    const square = memory(state.focus, "square", state.t);
    ROWS.forEach((row, r) => {
      for (const n of [0, 1]) {
        const box = $("grid").children[2 + 2 * r + n];
        const lines = runs.map((one) => {
          const values = one.steps.map((each) => row.value(one, each, n));
          return values.some((each) => each !== null) ? values : null;
        });
        box.hidden = lines.every((one) => one === null); // none of them keeps such an average
        const band = { gradient: average || square, average, square }[row.id] ?? 0;
        const { low, high } = Drawing.strip(box.querySelector("canvas"), {
          lines,
          steps: state.steps,
          t: state.t,
          focus: state.focus,
          band,
          borders: ends,
          robust: row.id === "rate",
          lost: runs.map((one) => one.lost),
        }) ?? { low: 0, high: 0 };
        const title = row.title(run);
        const value = step ? row.value(run, step, n) : null;
        const text = value === null || Number.isNaN(value) ? "" : Numbers.text(value);
        box.querySelector("b").textContent = title;
        box.querySelector("b").title = title;
        box.querySelector("output").textContent = text;
        box
          .querySelector("canvas")
          .setAttribute(
            "aria-label",
            `${title}, ${axes()[n]}, of ${label(state.focus)} over ${state.steps} steps${text && `; in this step ${text}`}`,
          );
        box.querySelector(".range").textContent =
          `from ${Numbers.text(low, 3)} to ${Numbers.text(high, 3)}`;
      }
    });
    const said = [];
    if (average)
      said.push(`the newest ${average} of ${state.t} gradients carry 90 % of ${run.average}`);
    if (square) said.push(`the newest ${square} carry 90 % of ${run.square}`);
    const shaded = said.length ? `Shaded: ${said.join("; ")}. ` : "";
    $("bandnote").textContent = shaded + (ends.length ? "Dotted lines: an epoch ends." : "");
  }

  const COSTS = (run, t) => Numbers.text(run.costs[Math.min(t, run.costs.length - 1)]);

  function showStatus() {
    if (playing !== null && state.t % 5 !== 0) return;
    const said = runs.map((run, i) => {
      const last = run.points.length - 1;
      if (state.t > last)
        return `${label(i)} left all bounds in step ${last}: its learning rate is too large here`;
      return `${label(i)} is at ${Numbers.point(run.points[state.t], 3)}, cost ${COSTS(run, state.t)}`;
    });
    const step = runs[state.focus].steps[state.t - 1];
    const made = step
      ? ` ${label(state.focus)}: gradient ${Numbers.point(step.gradient, 3)}, step ${Numbers.point(step.update, 3)}.`
      : "";
    $("status").textContent = `After step ${state.t}: ${said.join("; ")}.${made}`;
  }

  // ----------------------------------------------------------------------------------------------
  // The formula with numbers, and the table.

  function pieces(right, values) {
    return Lines.written(right, values).map(([text, kind]) =>
      kind === "raised"
        ? element("sup", {}, text)
        : kind === "number"
          ? element("span", { class: "number" }, text)
          : text,
    );
  }

  function showLines() {
    const box = $("lines");
    const { name } = state.optimizers[state.focus];
    const run = runs[state.focus];
    const step = run.steps[state.t - 1];
    const title = `This step of ${label(state.focus)}, in numbers`;
    $("formulatitle").textContent = title;
    if (!step) {
      const formula = State.described(name).formula;
      const why =
        state.t === 0
          ? "No step has been made yet. Step forward, and the numbers stand here. The rule:"
          : "This run has left all bounds before this step. The rule:";
      box.replaceChildren(element("p", { class: "note" }, why), preformatted(formula));
      return;
    }
    const before = state.t > 1 ? run.steps[state.t - 2].state : null;
    const [x, y] = [0, 1].map((n) => Lines.of(name, run.options, step, before, n));
    if (x === null) {
      box.replaceChildren(preformatted(State.described(name).formula), stateTable(step, before));
      return;
    }
    const rows = x.map((line, k) =>
      element(
        "tr",
        { class: k === x.length - 1 ? "last" : null },
        element(
          "th",
          { scope: "row" },
          element("code", {}, `${line.left} ← `, ...pieces(line.right, null)),
        ),
        ...[line, y[k]].map((one, n) =>
          element(
            "td",
            { "data-axis": AXES[n] },
            element(
              "code",
              {},
              ...pieces(one.right, one.values),
              " = ",
              element("span", { class: "result" }, Numbers.text(one.result, 5)),
            ),
          ),
        ),
      ),
    );
    const head = element(
      "tr",
      {},
      ...[`rule (step t = ${step.t})`, ...axes()].map((one) =>
        element("th", { scope: "col" }, one),
      ),
    );
    box.replaceChildren(
      element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)),
    );
  }

  const preformatted = (lines) =>
    element(
      "pre",
      {
        class: "scroll",
        tabindex: "0",
        role: "region",
        "aria-label": "The rule, as the documentation has it",
      },
      lines.join("\n").replaceAll("<-", "←"),
    );

  function stateTable(step, before) {
    const row = (title, values) =>
      element(
        "tr",
        {},
        element("th", { scope: "row" }, title),
        ...values.map((one) => element("td", {}, element("code", {}, one))),
      );
    const from = (slot, n) => (before ? Numbers.text(before[slot][n]) : "at first");
    return element(
      "table",
      {},
      element(
        "thead",
        {},
        element("tr", {}, ...["", ...axes()].map((one) => element("th", { scope: "col" }, one))),
      ),
      element(
        "tbody",
        {},
        row(
          "grad",
          Array.from(step.gradient, (one) => Numbers.text(one)),
        ),
        ...Object.keys(step.state).map((slot) =>
          row(
            slot,
            [0, 1].map((n) => `${from(slot, n)} → ${Numbers.text(step.state[slot][n])}`),
          ),
        ),
        row(
          "p",
          [0, 1].map(
            (n) =>
              `${Numbers.text(step.before[n])} → ${Numbers.text(step.before[n] + step.update[n])}`,
          ),
        ),
      ),
    );
  }

  function showTable() {
    const run = runs[state.focus];
    const columns = ROWS.filter(
      (row) => row.id !== "rate" && run.steps.length && row.value(run, run.steps[0], 0) !== null,
    );
    const titles = columns.map(
      (row) =>
        ({ gradient: "g", average: run.average, square: run.square, update: "step" })[row.id],
    );
    const head = element(
      "tr",
      {},
      ...[
        "step",
        "x",
        "y",
        "cost",
        ...titles.flatMap((one) => AXES.map((axis) => `${one} (${axis})`)),
      ].map((one) => element("th", { scope: "col" }, one)),
    );
    const rows = run.points.map((point, t) => {
      const step = run.steps[t - 1];
      const seen = columns.flatMap((row) =>
        [0, 1].map((n) => (step ? Numbers.text(row.value(run, step, n)) : "")),
      );
      const cells = [...point.map((one) => Numbers.text(one)), Numbers.text(run.costs[t]), ...seen];
      return element(
        "tr",
        { "aria-current": t === state.t ? "step" : null },
        element("th", { scope: "row" }, String(t)),
        ...cells.map((one) => element("td", {}, one)),
      );
    });
    $("table").replaceChildren(
      element(
        "table",
        {},
        element(
          "caption",
          {},
          `${label(state.focus)}: the place after each step, and what made it`,
        ),
        element("thead", {}, head),
        element("tbody", {}, ...rows),
      ),
    );
  }

  // ----------------------------------------------------------------------------------------------
  // Settings.

  function buildLegend() {
    const options = state.optimizers.map((one, i) => {
      const input = element("input", { type: "radio", name: "focus", value: i });
      input.checked = i === state.focus;
      input.addEventListener("change", () => set({ focus: i }, { fields: false }));
      return element(
        "label",
        {},
        input,
        element("canvas", { class: "sample", "data-run": i, "aria-hidden": "true" }),
        label(i),
        element("small", {}, short(i)),
      );
    });
    $("legend").replaceChildren(...options);
    drawSamples();
  }

  const short = (i) => `lr ${Numbers.plain(runs[i].options.lr)}`;

  function drawSamples() {
    for (const canvas of document.querySelectorAll("canvas.sample"))
      Drawing.sample(canvas, Number(canvas.dataset.run));
  }

  function refreshLegend() {
    document
      .querySelectorAll("#legend small")
      .forEach((small, i) => (small.textContent = short(i)));
  }

  function withOptimizer(i, changed) {
    return state.optimizers.map((one, n) => (n === i ? changed : one));
  }

  function optimizerCard(i) {
    const one = state.optimizers[i];
    const described = State.described(one.name);
    const names = FASTOPT.optimizers.map((each) => [each.name, each.title]);
    const choose = (name) => {
      // what both have is carried over, the learning rate above all
      const known = State.described(name).options.map((each) => each.name);
      const kept = Object.entries(state.optimizers[i].options).filter(
        ([key, value]) => known.includes(key) && !Array.isArray(value),
      );
      return set({
        optimizers: withOptimizer(i, { name, options: Object.fromEntries(kept) }),
        focus: i,
      });
    };
    const setOption = (key, value) => {
      const now = state.optimizers[i];
      const options = { ...now.options, [key]: value };
      const wrong = set({ optimizers: withOptimizer(i, { ...now, options }) }, { fields: false });
      refreshLegend();
      return wrong;
    };
    const remove = element(
      "button",
      {
        type: "button",
        "aria-label": `Remove ${label(i)}`,
        onclick: () => set({ optimizers: state.optimizers.filter((_, n) => n !== i) }),
      },
      "Remove",
    );
    return element(
      "fieldset",
      { class: "card", "data-card": i },
      element(
        "legend",
        {},
        element("canvas", { class: "sample", "data-run": i, "aria-hidden": "true" }),
        label(i),
      ),
      Controls.choiceRow({ label: "Optimizer", value: one.name, choices: names, set: choose }),
      ...Controls.optionRows(described, one.options, setOption),
      ...(state.optimizers.length > 1 ? [element("div", { class: "row" }, remove)] : []),
    );
  }

  let startFields = [];

  function groundCard() {
    const surfaces = Object.entries(Surfaces.ALL).map(([name, one]) => [name, one.title]);
    const quiet = (patch) => set(patch, { fields: false });
    const rows = [
      Controls.choiceRow({
        label: "Surface",
        value: state.surface,
        choices: surfaces,
        set: (surface) => set({ surface, t: 0 }),
      }),
      element("p", { class: "about" }, Surfaces.ALL[state.surface].text),
    ];
    if (["bowl", "noisy"].includes(state.surface)) {
      rows.push(
        Controls.numberRow({
          label: "Condition c (how oblong)",
          help: "how many times as curved across as along",
          value: state.condition,
          low: 1,
          high: 1000,
          log: true,
          set: (condition) => quiet({ condition }),
        }),
      );
    }
    if (state.surface === "formula") {
      rows.push(
        Controls.textField({
          label: "Cost f(x, y) =",
          value: state.formula,
          set: (formula) => quiet({ formula }),
          help: "numbers, x, y, + - * / ^, brackets, sin cos tan atan sinh cosh tanh exp log sqrt abs, pi, e",
        }).row,
      );
    }
    startFields = AXES.map((axis, n) =>
      Controls.textField({
        label: `Start ${axis}`,
        value: state.start[n],
        number: true,
        set: (value) => quiet({ start: state.start.map((old, k) => (k === n ? value : old)) }),
      }),
    );
    rows.push(element("div", { class: "two" }, ...startFields.map((one) => one.row)));
    rows.push(
      Controls.numberRow({
        label: "Steps",
        value: state.steps,
        low: 1,
        high: State.MOST_STEPS,
        log: true,
        set: (steps) => quiet({ steps: Number.isInteger(steps) ? steps : Math.round(steps) }),
      }),
    );
    const noisy = state.noise > 0;
    rows.push(
      Controls.flagRow({
        label: "Mini-batches (noisy gradients)",
        value: noisy,
        help: "each step sees the mean gradient of a few of 64 examples",
        set: (on) => set({ noise: on ? Surfaces.ALL.noisy.noise : 0 }),
      }),
    );
    if (noisy) {
      rows.push(
        Controls.numberRow({
          label: "How much the examples differ",
          value: state.noise,
          low: 0.01,
          high: 100,
          log: true,
          set: (noise) => quiet({ noise }),
        }),
      );
      const sizes = State.BATCHES.map((size) => [
        size,
        `${size} of ${Surfaces.EXAMPLES} examples: ${Surfaces.EXAMPLES / size} steps per epoch`,
      ]);
      rows.push(
        Controls.choiceRow({
          label: "Batch",
          value: state.batch,
          choices: sizes,
          set: (batch) => quiet({ batch }),
        }),
      );
      rows.push(
        Controls.textField({
          label: "Seed of the noise",
          value: state.seed,
          number: true,
          set: (seed) => quiet({ seed }),
        }).row,
      );
    }
    return element(
      "fieldset",
      { class: "card", id: "ground" },
      element("legend", {}, "Cost"),
      ...rows,
    );
  }

  function buildFields() {
    // What is being used keeps the focus: fields are found again by their place.
    const fields = () => Array.from($("cards").querySelectorAll("input, select, button"));
    const at = fields().indexOf(document.activeElement);
    const cards = [groundCard(), ...state.optimizers.map((_, i) => optimizerCard(i))];
    if (state.optimizers.length < State.MOST_OPTIMIZERS) {
      const add = () =>
        set({
          optimizers: [...state.optimizers, { name: "RMSprop", options: { lr: 0.1 } }],
          focus: state.optimizers.length,
        });
      cards.push(
        element("button", { type: "button", class: "add", onclick: add }, "Add an optimizer"),
      );
    }
    $("cards").replaceChildren(...cards);
    $("theme").value = state.theme;
    drawSamples();
    if (at >= 0) fields()[Math.min(at, fields().length - 1)].focus();
  }

  // ----------------------------------------------------------------------------------------------
  // The start, dragged or moved by keys.

  function moveStart(start) {
    const rounded = start.map((one) => Number(one.toPrecision(4)));
    if (set({ start: rounded }, { fields: false })) return;
    startFields.forEach((one, n) => (one.field.value = String(state.start[n])));
  }

  function listenToStart() {
    const handle = $("start");
    handle.addEventListener("pointerdown", (event) => {
      pause();
      handle.setPointerCapture(event.pointerId);
    });
    handle.addEventListener("pointermove", (event) => {
      if (!event.buttons) return;
      const box = $("surface").getBoundingClientRect();
      const at = [
        Math.min(box.right, Math.max(box.left, event.clientX)) - box.left,
        Math.min(box.bottom, Math.max(box.top, event.clientY)) - box.top,
      ];
      moveStart(Drawing.mapping(view, box.width, box.height).from(at));
    });
    handle.addEventListener("keydown", (event) => {
      const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
      const way = ways[event.key];
      if (!way) return;
      event.preventDefault();
      event.stopPropagation();
      const size = (view[2] / 100) * (event.shiftKey ? 5 : 1);
      moveStart([0, 1].map((n) => state.start[n] + size * way[n]));
    });
  }

  // ----------------------------------------------------------------------------------------------
  // Questions.

  const answered = {}; // by id: the numbers, once worked out

  function questionBox(question) {
    const name = `choice-${question.id}`;
    const answer = element("div", { "aria-live": "polite" });
    const see = element(
      "button",
      { type: "button", class: "main", disabled: true },
      "See the answer",
    );
    const showMe = element("button", { type: "button", hidden: true }, "Show me");
    const labels = question.choices.map(([text], i) => {
      const input = element("input", { type: "radio", name, value: i });
      input.addEventListener("change", () => (see.disabled = false));
      return element("label", {}, input, element("span", {}, text));
    });
    see.addEventListener("click", () => {
      const chosen = labels.findIndex((one) => one.querySelector("input").checked);
      const numbers = (answered[question.id] ??= question.compute());
      const right = Questions.right(question, numbers);
      const good = chosen === right;
      labels.forEach((one, i) => {
        one.classList.toggle("right", i === right);
        one.querySelector("small")?.remove();
        if (i === right) one.append(element("small", {}, "✓ so it is"));
      });
      answer.replaceChildren(
        element(
          "p",
          { class: `verdict ${good ? "good" : "other"}` },
          good ? "As you said." : `It is otherwise: ${question.choices[right][0]}.`,
        ),
        element("p", {}, question.tell(numbers)),
      );
      showMe.hidden = false;
    });
    showMe.addEventListener("click", () => {
      pause();
      set({ ...question.show, ask: question.id });
      $("stage").focus({ preventScroll: true });
      $("stage").scrollIntoView({ block: "nearest" });
    });
    const box = element(
      "details",
      { name: "question", id: `question-${question.id}` },
      element("summary", {}, question.title),
      element("fieldset", {}, element("legend", {}, question.ask), ...labels),
      element("div", { class: "buttons" }, see, showMe),
      answer,
    );
    box.addEventListener("toggle", () => {
      // Where the questions scroll by themselves, the open one is brought into sight.
      if (box.open) box.parentNode.parentNode.scrollTo({ top: box.offsetTop - 60 });
      if (box.open && state.ask !== question.id) state = { ...state, ask: question.id };
      else if (!box.open && state.ask === question.id) state = { ...state, ask: "" };
      keepLink();
    });
    return box;
  }

  // ----------------------------------------------------------------------------------------------
  // Link, colours, keys.

  let own = null; // the link that this page wrote itself

  function keepLink() {
    own = `#${State.toLink(state)}`;
    if (location.hash !== own) history.replaceState(null, "", own);
  }

  function notice(text) {
    $("notice").textContent = text ?? "";
    $("notice").hidden = !text;
  }

  function fromLink() {
    if (location.hash === own) return;
    pause();
    let wrong;
    let given = initial();
    try {
      given = { ...given, ...State.fromLink(location.hash) };
    } catch (mistake) {
      wrong = mistake.message;
    }
    state = State.DEFAULT;
    wrong ??= set(given);
    if (wrong) {
      set(initial());
      notice(`This link cannot be shown: ${wrong} Here is the usual beginning instead.`);
    } else notice("");
    if (state.ask) $(`question-${state.ask}`).open = true;
  }

  const initial = () => JSON.parse($("initial").textContent);

  const systemDark = matchMedia("(prefers-color-scheme: dark)");

  function applyTheme() {
    const dark = state.theme === "dark" || (state.theme === "auto" && systemDark.matches);
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    drawSamples();
  }

  function zoomBy(steps) {
    const at = State.ZOOMS.indexOf(state.zoom) + steps;
    set(
      { zoom: State.ZOOMS[Math.min(State.ZOOMS.length - 1, Math.max(0, at))] },
      { fields: false },
    );
  }

  function listen() {
    $("in").addEventListener("click", () => zoomBy(1));
    $("out").addEventListener("click", () => zoomBy(-1));
    $("first").addEventListener("click", () => (pause(), setStep(0)));
    $("back").addEventListener("click", () => (pause(), setStep(state.t - 1)));
    $("forward").addEventListener("click", () => (pause(), setStep(state.t + 1)));
    $("play").addEventListener("click", play);
    $("t").addEventListener("input", () => (pause(), setStep(Number($("t").value))));
    $("theme").addEventListener("change", () =>
      set({ theme: $("theme").value }, { fields: false }),
    );
    $("tablebox").addEventListener("toggle", () => $("tablebox").open && showTable());
    $("copy").addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(location.href);
        $("copy").textContent = "Copied";
        setTimeout(() => ($("copy").textContent = "Copy link"), 2000);
      } catch {
        notice(
          `The browser does not let this page copy. The link is in the address bar, and here: ${location.href}`,
        );
      }
    });
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      // What a control does with a key itself stays its own.
      if (event.target.closest?.("input, select, textarea, summary, .scroll")) return;
      const onButton = event.target.closest?.("button, a");
      const acts = {
        ArrowLeft: () => (pause(), setStep(state.t - 1)),
        ArrowRight: () => (pause(), setStep(state.t + 1)),
        Home: () => (pause(), setStep(0)),
        End: () => (pause(), setStep(state.steps)),
        " ": play,
      };
      if (!Object.hasOwn(acts, event.key) || (event.key === " " && onButton)) return;
      event.preventDefault();
      acts[event.key]();
    });
    window.addEventListener("hashchange", fromLink);
    systemDark.addEventListener("change", () => (applyTheme(), show()));
    new ResizeObserver(() => (drawSamples(), show())).observe($("frame"));
    listenToStart();
  }

  function begin() {
    buildStrips();
    $("asked").append(...Questions.ALL.map(questionBox));
    fromLink();
    applyTheme();
    show();
    listen();
  }

  begin();

  return {
    state: () => state,
    runs: () => runs,
    set,
    setStep,
    pause,
    isPlaying: () => playing !== null,
  };
})();
