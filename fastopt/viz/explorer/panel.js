// The numbers of a step written into the formula, and the table of all steps.
"use strict";

const Panel = (() => {
  const { element } = Controls;
  const { AXES } = Strips;

  function pieces(right, values) {
    return Lines.written(right, values).map(([text, kind]) =>
      kind === "raised"
        ? element("sup", {}, text)
        : kind === "number"
          ? element("span", { class: "number" }, text)
          : text,
    );
  }

  // Fills a box with the step's formula in numbers; a scene is {state, runs, axes, label}.
  function showLines(box, { state, runs, axes }) {
    const { name } = state.optimizers[state.focus];
    const run = runs[state.focus];
    const step = run.steps[state.t - 1];
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
      box.replaceChildren(
        preformatted(State.described(name).formula),
        stateTable(step, before, axes),
      );
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
          element("small", {}, Lines.meaning(name, line)),
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
      ...[`rule (step t = ${step.t})`, ...axes].map((one) => element("th", { scope: "col" }, one)),
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

  // What a step did to state and parameter, for rules that are not written out.
  function stateTable(step, before, axes) {
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
        element("tr", {}, ...["", ...axes].map((one) => element("th", { scope: "col" }, one))),
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

  // Fills a box with the table of all steps of the optimizer in focus.
  function showTable(box, { state, runs, label }) {
    const run = runs[state.focus];
    const columns = Strips.ROWS.filter(
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
    box.replaceChildren(
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

  return { showLines, showTable };
})();
