// The strips: gradient, averages, step and rate of each coordinate over the steps.
"use strict";

const Strips = (() => {
  const { element } = Controls;
  const AXES = ["x", "y"];

  // Not all divide what they gather by its weight.
  const SUMS = {
    SGD: { average: "fading sum" },
    Adagrad: { square: "sum" },
    FTRL: { square: "sum" },
    MADGRAD: { average: "sum", square: "sum" },
  };
  const summed = (run, kind) => SUMS[run.name]?.[kind] ?? "average";

  // Each row of strips has a title, and a value per step and coordinate, or null.
  const ROWS = [
    { id: "gradient", title: () => "gradient g", value: (run, step, n) => step.gradient[n] },
    {
      id: "average",
      title: (run) =>
        run.average ? `${summed(run, "average")} of g: ${run.average}` : "average of g",
      value: (run, step, n) => (run.average ? step.state[run.average][n] : null),
    },
    {
      id: "square",
      title: (run) => (run.square ? `${summed(run, "square")} of g²: ${run.square}` : "average of g²"),
      value: (run, step, n) => (run.square ? step.state[run.square][n] : null),
    },
    { id: "update", title: () => "step", value: (run, step, n) => step.update[n] },
    {
      id: "rate",
      title: (run) => `rate: step ÷ ${run.average ?? "g"}`,
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
    Adamax: { average: (o) => o.betas[0] },
    Yogi: { average: (o) => o.betas[0] },
    Lion: { average: (o) => o.betas[1] },
    Signum: { average: (o) => o.momentum },
    QHM: { average: (o) => o.momentum },
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
  function memory(run, kind, t) {
    const kept = (KEPT[run.name] ?? {})[kind];
    if (!kept || !run[kind] || t < 1) return 0;
    const beta = kept(run.options);
    if (beta === 0) return 1;
    const whole = 1 - Math.pow(beta, t);
    for (let n = 1; n < t; n += 1) if (1 - Math.pow(beta, n) >= 0.9 * whole) return n;
    return t;
  }

  // The steps after which an epoch ends, if there are mini-batches.
  function borders(state) {
    if (!(state.noise > 0)) return [];
    const each = Surfaces.EXAMPLES / state.batch;
    const found = [];
    for (let t = each; t < state.steps; t += each) found.push(t);
    return each * 80 < state.steps ? [] : found;
  }

  // Rules keep their own letters: says so where one letter means two things in what is shown.
  function letters(runs) {
    const first = runs.find((one) => runs.some((other) => one.average && one.average === other.square));
    if (!first) return "";
    const other = runs.find((one) => one.square === first.average);
    const letter = first.average;
    return (
      `Each rule has its own letters: ${first.name}’s ${letter} averages g (Adam calls that m),` +
      ` and ${other.name}’s ${letter} averages g².`
    );
  }

  // Builds the strips into a grid; choose(step) is called when one is clicked or dragged over, where
  // steps() says how many there are.
  function build(grid, steps, choose) {
    grid.append(element("div", { class: "column" }), element("div", { class: "column" }));
    for (const row of ROWS) {
      for (const n of [0, 1]) {
        const canvas = element("canvas", { role: "img", id: `strip-${row.id}-${AXES[n]}` });
        const at = (event) => choose(Drawing.stepAt(canvas, event.clientX, steps()));
        canvas.addEventListener("pointerdown", (event) => {
          canvas.setPointerCapture(event.pointerId);
          at(event);
        });
        canvas.addEventListener("pointermove", (event) => event.buttons && at(event));
        grid.append(
          element(
            "div",
            { class: "strip" },
            element(
              "div",
              { class: "head", "aria-hidden": "true" }, // the picture says the same, with the axis
              element("b", {}),
              element("output", {}),
            ),
            canvas,
            element("div", { class: "range", "aria-hidden": "true" }),
          ),
        );
      }
    }
  }

  // Draws all strips of a scene, {state, runs, axes, label}, and returns in words what is shaded.
  function show(grid, { state, runs, axes, label }) {
    const run = runs[state.focus];
    const step = run.steps[state.t - 1];
    const ends = borders(state);
    axes.forEach((text, n) => (grid.children[n].textContent = text));
    const average = memory(run, "average", state.t);
    const square = memory(run, "square", state.t);
    ROWS.forEach((row, r) => {
      for (const n of [0, 1]) {
        const box = grid.children[2 + 2 * r + n];
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
          lost: runs.map((one) => one.lost !== null),
        }) ?? { low: 0, high: 0 };
        const title = row.title(run);
        const value = step ? row.value(run, step, n) : null;
        const keeps = !["average", "square"].includes(row.id) || run[row.id];
        let text = keeps ? "" : `${run.name}: none`;
        let now = keeps ? "" : `; ${run.name} has none`;
        if (value !== null && !Number.isNaN(value)) {
          text = Numbers.text(value);
          now = `; in this step ${text}`;
        }
        box.querySelector("b").textContent = title;
        box.querySelector("b").title = title;
        box.querySelector("output").textContent = text;
        box
          .querySelector("canvas")
          .setAttribute(
            "aria-label",
            `${title}, ${axes[n]}, of ${label(state.focus)} over ${state.steps} steps${now}`,
          );
        const [least, most] = [low - 0.01 * (high - low), high + 0.01 * (high - low)];
        const beyond = lines.some((one) => one?.some((each) => each < least || each > most));
        box.querySelector(".range").textContent =
          `from ${Numbers.text(low, 3)} to ${Numbers.text(high, 3)}${beyond ? "; some lie beyond" : ""}`;
      }
    });
    const said = [];
    if (average)
      said.push(`the newest ${average} of ${state.t} gradients carry 90 % of ${run.average}`);
    if (square) said.push(`the newest ${square} carry 90 % of ${run.square}`);
    const shaded = said.length ? `Shaded: ${said.join("; ")}. ` : "";
    return [shaded, ends.length ? "Dotted lines: an epoch ends. " : "", letters(runs)].join("");
  }

  return { AXES, ROWS, build, show };
})();
