// The numbers of a step written into the formula, and the table of all steps.
"use strict";

const Panel = (() => {
  const { element } = Controls;
  const { AXES } = Strips;

  // Neighbouring pieces that are raised stand in one exponent.
  function elements(pieces) {
    const made = [];
    let above = null;
    for (const { text, kind, raised } of pieces) {
      if (raised && above === null) made.push((above = element("sup", {})));
      if (!raised) above = null;
      const shown = kind === "number" ? element("span", { class: "number" }, text) : text;
      if (raised) above.append(shown);
      else made.push(shown);
    }
    return made;
  }

  // A formula as it is seen, and in words for those who hear it.
  const formula = (seen, said) => [
    element("code", { "aria-hidden": "true" }, ...seen),
    element("span", { class: "said" }, `${said}.`),
  ];

  function ruleOf({ left, tree }) {
    const pieces = Notation.written(tree, null);
    return formula([`${left} ← `, ...elements(pieces)], `${left} becomes ${Notation.said(pieces)}`);
  }

  function numbersOf({ tree, texts, result, rounding }) {
    const shown = element("span", { class: "result" }, result);
    const said = Notation.saidNumber(result);
    if (tree.kind === "variable" || tree.kind === "number") return formula([shown], said);
    const pieces = Notation.written(tree, texts);
    return formula(
      [...elements(pieces), rounding ? " ≈ " : " = ", shown],
      `${Notation.said(pieces)}, ${rounding ? "of which rounding leaves" : "equals"} ${said}`,
    );
  }

  const LEFT = "; here only what rounding leaves of a difference";
  const isRounding = (k) => (lines) => lines[k].rounding;

  // Fills a box with the step's formula in numbers; a scene is {state, runs, axes, label}.
  function showLines(box, { state, runs, axes }) {
    const { name } = state.optimizers[state.focus];
    const run = runs[state.focus];
    const step = run.steps[state.t - 1];
    if (!step) {
      const why =
        state.t === 0
          ? "No step has been made yet. Step forward, and the numbers stand here. The rule:"
          : `This step was not made, for the run ${run.lost}. The rule:`;
      const { formula: lines } = State.described(name);
      box.replaceChildren(element("p", { class: "note" }, why), preformatted(lines));
      return;
    }
    const before = state.t > 1 ? run.steps[state.t - 2] : null;
    const both = [0, 1].map((n) => Lines.of(name, run.options, step, before, n));
    const [x, y] = both;
    // display: block would take a table's roles from it, so that they are said
    const rows = x.map((line, k) => {
      const rules =
        line.right === y[k].right // a rule that looks at signs may do otherwise along y
          ? ruleOf(line)
          : both.flatMap((lines, n) => [
              element("span", { class: "along" }, `${AXES[n]}: `, ...ruleOf(lines[k])),
            ]);
      return element(
        "tr",
        { class: line.last ? "last" : null, role: "row" },
        element(
          "th",
          { scope: "row", role: "rowheader" },
          ...rules,
          element("small", {}, Meanings.of(name, line), both.some(isRounding(k)) ? LEFT : ""),
        ),
        ...both.map((lines, n) =>
          element("td", { "data-axis": AXES[n], role: "cell" }, ...numbersOf(lines[k])),
        ),
      );
    });
    const titles = [`rule (step t = ${step.t})`, ...axes];
    const head = element(
      "tr",
      { role: "row" },
      ...titles.map((one) => element("th", { scope: "col", role: "columnheader" }, one)),
    );
    box.replaceChildren(
      element(
        "table",
        { role: "table", "aria-labelledby": "formulatitle" },
        element("thead", { role: "rowgroup" }, head),
        element("tbody", { role: "rowgroup" }, ...rows),
      ),
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
