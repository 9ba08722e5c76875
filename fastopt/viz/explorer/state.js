// The state of the page: what it is made of, its defaults, its checks, and its form in a link.
"use strict";

const State = (() => {
  const MOST_STEPS = 2000;
  const MOST_OPTIMIZERS = 4;
  const BATCHES = [1, 2, 4, 8, 16, 32, 64];
  const ZOOMS = [0.125, 0.25, 0.5, 1, 2, 4, 8, 16, 32];
  const THEMES = ["auto", "light", "dark"];

  const described = (name) => FASTOPT.optimizers.find((one) => one.name === name);

  const DEFAULT = {
    surface: "bowl",
    condition: 20,
    formula: "x^2/4 + sin(2*x) + y^2",
    start: [-4, 1.5],
    steps: 60,
    t: 12,
    noise: 0,
    batch: 8,
    seed: 1,
    focus: 1,
    zoom: 1,
    theme: "auto",
    ask: "",
    optimizers: [
      { name: "SGD", options: { lr: 0.094 } },
      { name: "Momentum", options: { lr: 0.2, beta: 0.7 } },
      { name: "RMSprop", options: { lr: 0.2 } },
    ],
  };

  // What to look at in it.
  const LOOK =
    "Gradient descent (SGD) zigzags across the valley; with a learning rate above 0.1 it would fly out." +
    " Momentum steps along an average of the gradients, in which the zigzag cancels: it takes 0.2 and is" +
    " ahead. RMSprop divides each direction by its own size.";

  class Wrong extends Error {}

  const quoted = (value) => (typeof value === "string" ? `“${value}”` : String(value));

  function number(name, value, low, high, whole = false) {
    if (
      !(typeof value === "number" && value >= low && value <= high) ||
      (whole && value % 1 !== 0)
    ) {
      const kind = whole ? "a whole number" : "a number";
      throw new Wrong(
        `${name} has to be ${kind} from ${low} to ${high}, and not ${quoted(value)}.`,
      );
    }
    return value;
  }

  function among(name, value, list) {
    if (!list.includes(value)) {
      throw new Wrong(
        `${name} has to be one of ${list.filter(String).join(", ")}, and not ${quoted(value)}.`,
      );
    }
    return value;
  }

  // The whole state from a part of it; what is not given is taken from `base`. Throws an Error with
  // a sentence for the reader.
  function completed(given, base = DEFAULT) {
    const state = { ...base, ...given };
    const surface = Surfaces.ALL[among("The surface", state.surface, Object.keys(Surfaces.ALL))];
    if (given.surface !== undefined && given.surface !== base.surface) {
      if (given.zoom === undefined) state.zoom = 1;
      if (given.start === undefined) state.start = surface.start;
      if (given.noise === undefined) state.noise = surface.noise;
    }
    if (state.surface === "formula") {
      const value = Formula.surface(state.formula).value(...state.start);
      if (!Number.isFinite(value)) {
        throw new Wrong(
          `The formula is ${Numbers.text(value)} at the start ${Numbers.point(state.start)}. Move the start to` +
            " where it is a number, or change the formula.",
        );
      }
    }
    if (!Array.isArray(state.start) || state.start.length !== 2) {
      throw new Wrong("The start has to be two numbers, x and y.");
    }
    state.start = [0, 1].map((n) => number(`The start’s ${"xy"[n]}`, state.start[n], -1e8, 1e8));
    number("The condition", state.condition, 1e-6, 1e6);
    number("The number of steps", state.steps, 1, MOST_STEPS, true);
    number("The noise", state.noise, 0, 1e9);
    among("The batch", state.batch, BATCHES);
    number("The seed", state.seed, 0, Number.MAX_SAFE_INTEGER, true);
    among("The zoom", state.zoom, ZOOMS);
    among("The theme", state.theme, THEMES);
    among("The question", state.ask, ["", ...Questions.ALL.map((one) => one.id)]);
    if (!(state.optimizers.length >= 1 && state.optimizers.length <= MOST_OPTIMIZERS)) {
      throw new Wrong(
        `There can be one to ${MOST_OPTIMIZERS} optimizers, and not ${state.optimizers.length}.`,
      );
    }
    // which throws for what is not right, and says why
    for (const { name, options } of state.optimizers) FASTOPT.create(name, options);
    state.t = Math.min(number("The step", state.t, 0, MOST_STEPS, true), state.steps);
    state.focus = Math.min(
      number("The focus", state.focus, 0, MOST_OPTIMIZERS - 1, true),
      state.optimizers.length - 1,
    );
    return state;
  }

  const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

  const encoded = (text) =>
    encodeURIComponent(text).replace(/%(2C|3B|3A|2F|2B|28|29)/g, (sign) =>
      decodeURIComponent(sign),
    );

  // The part of a link behind #: what differs from the defaults.
  function toLink(state) {
    const parts = [];
    for (const key of [
      "surface",
      "condition",
      "formula",
      "start",
      "steps",
      "t",
      "noise",
      "batch",
      "seed",
      "focus",
      "zoom",
      "theme",
      "ask",
    ]) {
      if (!same(state[key], DEFAULT[key])) parts.push(`${key}=${encoded(String(state[key]))}`);
    }
    for (const { name, options } of state.optimizers) {
      const given = Object.entries(options).filter(
        ([key, value]) =>
          !same(value, described(name).options.find((one) => one.name === key).value),
      );
      parts.push(
        `o=${encoded([name, ...given.map(([key, value]) => `${key}:${value}`)].join(";"))}`,
      );
    }
    return parts.join("&");
  }

  // A number that a link has; what cannot be read as one stays as it is, so that it can be told.
  const read = (text) =>
    text.trim() !== "" && Number.isFinite(Number(text)) ? Number(text) : text;

  function option(text) {
    if (text === "true" || text === "false") return text === "true";
    if (text === "null") return null;
    return text.includes(",") ? text.split(",").map(read) : read(text);
  }

  function decoded(text) {
    try {
      return decodeURIComponent(text);
    } catch {
      throw new Wrong(`The link has “${text}”, in which a % is not followed by two hex digits.`);
    }
  }

  // The part of a state that stands in a link. Throws for a name that does not belong there.
  function fromLink(link) {
    const given = {};
    for (const part of link.replace(/^#/, "").split("&").filter(Boolean)) {
      const cut = part.indexOf("=");
      const key = cut < 0 ? part : part.slice(0, cut);
      const text = cut < 0 ? "" : decoded(part.slice(cut + 1));
      if (key === "o") {
        const [name, ...options] = text.split(";");
        const pairs = options.map((one) => [
          one.split(":")[0],
          option(one.split(":").slice(1).join(":")),
        ]);
        given.optimizers = [
          ...(given.optimizers ?? []),
          { name, options: Object.fromEntries(pairs) },
        ];
      } else if (key === "start") given.start = text.split(",").map(read);
      else if (["surface", "formula", "theme", "ask"].includes(key)) given[key] = text;
      else if (Object.hasOwn(DEFAULT, key) && key !== "optimizers") given[key] = read(text);
      else throw new Wrong(`The link has “${key}”, which is not known here.`);
    }
    return given;
  }

  return {
    DEFAULT,
    LOOK,
    MOST_STEPS,
    MOST_OPTIMIZERS,
    BATCHES,
    ZOOMS,
    THEMES,
    described,
    completed,
    toLink,
    fromLink,
    same,
  };
})();
