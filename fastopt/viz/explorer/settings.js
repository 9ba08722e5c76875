// The cards of the settings: the cost, and one for each optimizer.
"use strict";

const Settings = (() => {
  const { element } = Controls;
  const { AXES } = Strips;

  const exchanged = (list, i, changed) => list.map((one, n) => (n === i ? changed : one));

  // page: {scene(), set(patch, {fields})}, where a scene is {state, label, ...} as it is now.
  function optimizerCard(page, i) {
    const optimizers = () => page.scene().state.optimizers;
    const one = optimizers()[i];
    const described = State.described(one.name);
    const names = FASTOPT.optimizers.map((each) => [each.name, each.title]);
    const choose = (name) => {
      // what both have is carried over, the learning rate above all
      const known = State.described(name).options.map((each) => each.name);
      const kept = Object.entries(optimizers()[i].options).filter(
        ([key, value]) => known.includes(key) && !Array.isArray(value),
      );
      const changed = { name, options: Object.fromEntries(kept) };
      return page.set({ optimizers: exchanged(optimizers(), i, changed), focus: i });
    };
    const setOption = (key, value) => {
      const now = optimizers()[i];
      const options = { ...now.options, [key]: value };
      const all = exchanged(optimizers(), i, { ...now, options });
      return page.set({ optimizers: all }, { fields: false });
    };
    const remove = element(
      "button",
      {
        type: "button",
        "aria-label": `Remove optimizer ${i + 1}, ${one.name}`,
        onclick: () => page.set({ optimizers: optimizers().filter((_, n) => n !== i) }),
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
        element("span", { "data-label": i }),
      ),
      Controls.choiceRow({ label: "Optimizer", value: one.name, choices: names, set: choose }),
      ...Controls.optionRows(described, one.options, setOption),
      ...(optimizers().length > 1 ? [element("div", { class: "row" }, remove)] : []),
    );
  }

  // The card of the cost and the start. startFields: the two fields, for whoever moves the start.
  function groundCard(page) {
    const { state } = page.scene();
    const now = () => page.scene().state;
    const surfaces = Object.entries(Surfaces.ALL).map(([name, one]) => [name, one.title]);
    const quiet = (patch) => page.set(patch, { fields: false });
    const rows = [
      Controls.choiceRow({
        label: "Surface",
        value: state.surface,
        choices: surfaces,
        set: (surface) => page.set({ surface, t: 0 }),
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
          help: `numbers, x, y, pi, e, + - * / ^, brackets, ${Formula.FUNCTIONS.join(" ")}`,
        }).row,
      );
    }
    const startFields = AXES.map((axis, n) =>
      Controls.textField({
        label: `Start ${axis}`,
        value: state.start[n],
        number: true,
        set: (value) => quiet({ start: now().start.map((old, k) => (k === n ? value : old)) }),
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
        whole: true,
        set: (steps) => quiet({ steps }),
      }),
    );
    const noisy = state.noise > 0;
    rows.push(
      Controls.flagRow({
        label: "Mini-batches (noisy gradients)",
        value: noisy,
        help: "each step sees the mean gradient of a few of 64 examples",
        set: (on) => page.set({ noise: on ? Surfaces.ALL.noisy.noise : 0 }),
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
    const card = element(
      "fieldset",
      { class: "card", id: "ground" },
      element("legend", {}, "Cost"),
      ...rows,
    );
    return { card, startFields };
  }

  return { optimizerCard, groundCard };
})();
