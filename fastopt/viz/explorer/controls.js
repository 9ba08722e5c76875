// The fields of the settings: each shows a value, and hands a new one to `set`, which returns what
// is wrong with it in words, or nothing.
"use strict";

const Controls = (() => {
  let count = 0;

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (value === true) made.setAttribute(name, "");
      else if (value !== false && value !== null && value !== undefined)
        made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  }

  const tidy = (number) => Number(number.toPrecision(3));

  // From a slider's place (0 to 1) to a value, and back.
  function scale({ low, high, log }) {
    if (log) {
      return {
        at: (place) => tidy(low * Math.pow(high / low, place)),
        place: (value) => Math.log(Math.max(value, low) / low) / Math.log(high / low),
      };
    }
    if (low === 0 && high > 0.99 && high < 1) {
      // a share that is kept: equal ways for 0.9, 0.99, 0.999
      const nines = -Math.log10(1 - high);
      return {
        at: (place) => 1 - tidy(Math.pow(10, -nines * place)),
        place: (value) => -Math.log10(Math.max(1 - value, 1e-12)) / nines,
      };
    }
    return {
      at: (place) => tidy(low + (high - low) * place),
      place: (value) => (value - low) / (high - low),
    };
  }

  function told(field, tell, wrong) {
    tell.textContent = wrong ?? "";
    if (wrong) field.setAttribute("aria-invalid", "true");
    else field.removeAttribute("aria-invalid");
  }

  // A number with a slider. optional: it may be empty, which is null. whole: of the slider.
  function numberRow(given) {
    const { label, help, value, low, high, log, set } = given;
    const { optional = false, whole = false } = given;
    const id = `field${(count += 1)}`;
    const of = scale({ low, high, log });
    const shownValue = (one) => (one === null ? "" : Numbers.plain(Number(one.toPrecision(12))));
    const place = (one) =>
      one === null ? 0 : Math.round(1000 * Math.min(1, Math.max(0, of.place(one))));
    const tell = element("p", { class: "tell", id: `${id}tell`, role: "alert" });
    const field = element("input", {
      type: "text",
      inputmode: "decimal",
      id,
      autocomplete: "off",
      "aria-describedby": `${id}tell`,
      value: shownValue(value),
      title: help,
      placeholder: optional ? "none" : null,
    });
    const slider = element("input", {
      type: "range",
      min: 0,
      max: 1000,
      value: place(value),
      "aria-label": label, // its role says that it is the slider
      "aria-valuetext": shownValue(value),
      title: help,
    });
    const give = (number, from) => {
      told(field, tell, set(number));
      slider.setAttribute("aria-valuetext", shownValue(number));
      if (from !== slider) slider.value = place(number);
      if (from !== field) field.value = shownValue(number);
    };
    slider.addEventListener("input", () => {
      const at = of.at(slider.value / 1000);
      give(whole ? Math.round(at) : at, slider);
    });
    field.addEventListener("input", () => {
      const text = field.value.trim().replace("−", "-");
      if (text === "" && optional) return give(null, field);
      if (text === "" || !Number.isFinite(Number(text))) {
        const comma = text.includes(",") ? " Decimals take a point." : "";
        return told(
          field,
          tell,
          `${label} has to be a number, such as ${shownValue(value ?? low)}.${comma}`,
        );
      }
      return give(Number(text), field);
    });
    return element(
      "div",
      { class: "row" },
      element("label", { for: id, title: help }, label),
      element("div", { class: "pair" }, slider, field),
      tell,
    );
  }

  function flagRow({ label, help, value, set }) {
    const tell = element("p", { class: "tell", role: "alert" });
    const box = element("input", { type: "checkbox" });
    box.checked = value;
    box.addEventListener("change", () => {
      const wrong = set(box.checked);
      told(box, tell, wrong);
      if (wrong) box.checked = !box.checked; // it stays as it was
    });
    return element("div", {}, element("label", { class: "check", title: help }, box, label), tell);
  }

  function choiceRow({ label, help, value, choices, set }) {
    const id = `field${(count += 1)}`;
    const tell = element("p", { class: "tell", role: "alert" });
    const list = element(
      "select",
      { id, title: help },
      ...choices.map(([one, title]) =>
        element("option", { value: String(one), selected: one === value }, title),
      ),
    );
    list.addEventListener("change", () => told(list, tell, set(choices[list.selectedIndex][0])));
    return element("div", { class: "row" }, element("label", { for: id }, label), list, tell);
  }

  // A text, or (with `number`) a number without a slider.
  function textField({ label, value, number = false, help, set }) {
    const id = `field${(count += 1)}`;
    const tell = element("p", { class: "tell", id: `${id}tell`, role: "alert" });
    const field = element("input", {
      type: "text",
      id,
      value: String(value),
      autocomplete: "off",
      spellcheck: "false",
      title: help,
      inputmode: number ? "decimal" : null,
      "aria-describedby": `${id}tell`,
      "data-name": label,
    });
    field.addEventListener("input", () => {
      const text = field.value.trim().replace("−", "-");
      if (!number) return told(field, tell, set(field.value));
      if (text === "" || !Number.isFinite(Number(text))) {
        return told(field, tell, `${label} has to be a number, such as 1.5.`);
      }
      return told(field, tell, set(Number(text)));
    });
    return {
      row: element("div", { class: "row" }, element("label", { for: id }, label), field, tell),
      field,
    };
  }

  // All options of an optimizer, as FASTOPT.optimizers describes them; those that are used less
  // often are folded away. set(name, value)
  const OFTEN = [
    "lr",
    "beta",
    "betas",
    "momentum",
    "rho",
    "eps",
    "bias_correction",
    "eps_inside_sqrt",
    "amsgrad",
    "nesterov",
  ];

  function optionRows(described, options, set) {
    const [often, seldom] = [[], []];
    for (const one of described.options) {
      const value = options[one.name] ?? one.value;
      const rows = OFTEN.includes(one.name) ? often : seldom;
      const common = { help: one.help, value, set: (given) => set(one.name, given) };
      if (one.kind === "flag") rows.push(flagRow({ ...common, label: one.name }));
      else if (one.kind === "choice") {
        const choices = one.choices.map((choice) => [choice, String(choice)]);
        rows.push(choiceRow({ ...common, label: one.name, choices }));
      } else if (Array.isArray(one.value)) {
        const now = [...value];
        one.value.forEach((_, k) => {
          const [low, high] = [one.low, one.high].map((end) => (Array.isArray(end) ? end[k] : end));
          rows.push(
            numberRow({
              label: one.kind === "betas" ? `beta${k + 1}` : `${one.name} ${k + 1}`,
              help: one.help,
              value: value[k],
              low,
              high,
              log: one.log,
              set: (given) => {
                const next = now.map((old, n) => (n === k ? given : old));
                const wrong = set(one.name, next);
                if (!wrong) now[k] = given;
                return wrong;
              },
            }),
          );
        });
      } else {
        rows.push(
          numberRow({
            ...common,
            label: one.name,
            low: one.low,
            high: one.high,
            log: one.log,
            optional: one.value === null,
          }),
        );
      }
    }
    const meanings = element(
      "details",
      { class: "meanings" },
      element("summary", {}, "What the options mean"),
      element(
        "dl",
        {},
        ...described.options.flatMap((one) => [
          element("dt", {}, one.name),
          element("dd", {}, one.help),
        ]),
      ),
    );
    if (seldom.length === 0) return [...often, meanings];
    const changed = described.options.some(
      (one) =>
        !OFTEN.includes(one.name) &&
        one.name in options &&
        !State.same(options[one.name], one.value),
    );
    return [
      ...often,
      element("details", { open: changed }, element("summary", {}, "More options"), ...seldom),
      meanings,
    ];
  }

  return { element, numberRow, flagRow, choiceRow, textField, optionRows };
})();
