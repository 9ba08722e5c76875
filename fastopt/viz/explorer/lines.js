// The lines of a docstring's formula that hold for the options chosen, with the numbers of a step
// written into them. They are worked out here, line by line, from the text that is shown, so that a
// reader can check them against what the package's rule did.
"use strict";

const Lines = (() => {
  // A line is a text "left <- right". Those of a docstring, in its order; what stands beside them,
  // two blanks away, is words. Several in one are taken apart: "a <- 1,  b <- 2" and "a, b <- 1, 2".
  function ofDocstring(name) {
    const found = [];
    for (const text of State.described(name).formula) {
      for (const one of text.split(/[,;] {2}/)) {
        const match = /^(\S.*?) *<- (\S+(?: \S+)*)/.exec(one);
        if (match === null) continue;
        const [, left, right] = match;
        const lefts = left.split(", ");
        const rights = lefts.length > 1 ? right.split(", ") : [right];
        lefts.forEach((each, k) => found.push(`${each} <- ${rights[k]}`));
      }
    }
    return found;
  }

  function split(line) {
    const [left, right] = line.split(" <- ");
    return { left, right };
  }

  const assigns = (left) => (line) => split(line).left === left;
  const nth = (lines, left, n = 0) => lines.filter(assigns(left))[n];
  const without = (lines, ...lefts) => lines.filter((line) => !lefts.includes(split(line).left));
  // The lines with others in the place of those that assign the same.
  const exchanged = (lines, ...others) =>
    lines.map((line) => others.find(assigns(split(line).left)) ?? line);
  const inside = (line) => line.replace(/\(sqrt\((.*)\) \+ eps\)/, "sqrt($1 + eps)");
  const largest = (line) => line.replace(/\bv\b/, "vmax");

  // ----------------------------------------------------------------------------------------------
  // Which lines hold.

  const DECAY = "p <- p - lr * weight_decay * p";
  const APART = ["AdamW"]; // whose decay acts on the parameter without an option that says so

  // The lines in which weight decay acts as the options say, if at all.
  function decayed(lines, o, apart) {
    const inGradient = o.weight_decay > 0 && !apart;
    const seen = lines.map((line) =>
      inGradient
        ? line
        : line
            .replace("(grad + weight_decay * p)", "grad")
            .replace(/ \+ weight_decay \* p$/, "")
            .replace(/ \+ weight_decay \* y$/, o.weight_decay > 0 ? "$&" : ""),
    );
    if (!(o.weight_decay > 0)) return seen.filter((line) => !line.includes("weight_decay"));
    if (apart && !lines.includes(DECAY)) seen.splice(seen.findIndex(assigns("g")) + 1, 0, DECAY);
    return seen;
  }

  // By optimizer, where not all of the docstring's lines hold as they stand there: those that do,
  // and what its words beside them say of others. here: {t, values}, the latter at the step's begin.
  const CHOSEN = {
    SGD(lines, o, { t }) {
      const begin = lines.slice(0, lines.findIndex(assigns("buf")));
      if (o.momentum > 0 && o.lr_inside) {
        const last = o.nesterov ? "p <- p + momentum * v - lr * g" : "p <- p + v";
        return [...begin, nth(lines, "v"), last];
      }
      const last = "p <- p - lr * d";
      if (!(o.momentum > 0)) return [...begin, "d <- g", last];
      const buf = nth(lines, "buf", t === 1 ? 0 : 1);
      return [...begin, buf, nth(lines, "d", o.nesterov ? 0 : 1), last];
    },
    Momentum: (lines, o) =>
      o.bias_correction ? exchanged(lines, "p <- p - lr * v / (1 - beta^t)") : lines,
    Adagrad: (lines, o) => (o.eps_inside_sqrt ? lines.map(inside) : lines),
    RMSprop(lines, o) {
      const begin = lines.slice(0, lines.findIndex(assigns("a")) + (o.centered ? 1 : 0));
      const c = o.bias_correction ? nth(lines, "c") : "c <- 1";
      const w = o.centered ? "w <- |v / c - (a / c)^2|" : nth(lines, "w");
      const d = o.eps_inside_sqrt ? inside(nth(lines, "d")) : nth(lines, "d");
      const all = [...begin, c, w, d];
      if (!(o.momentum > 0)) return [...all, "p <- p - lr * d"];
      if (o.lr_inside) return [...all, nth(lines, "u"), "p <- p - u"];
      return [...all, nth(lines, "buf"), "p <- p - lr * buf"];
    },
    Adam(lines, o) {
      const [first, second] = lines.filter(assigns("p")).slice(-2);
      let last = o.eps_hat ? second : first;
      if (o.amsgrad) last = largest(last);
      if (o.eps_inside_sqrt) last = inside(last);
      const all = lines.filter((line) => line !== first && line !== second);
      const kept = o.amsgrad ? all : without(all, "vmax");
      const corrected = o.bias_correction ? kept : exchanged(kept, "c1 <- 1", "c2 <- 1");
      return [...corrected, last];
    },
    AdamW: (lines, o, here) => CHOSEN.Adam(lines, o, here),
    NAdam(lines) {
      const mu = nth(lines, "mu_t")
        .replace("mu_t", "mu_(t+1)")
        .replace("t * momentum_decay", "(t + 1) * momentum_decay");
      const product = "M_(t+1) <- M_t * mu_(t+1)";
      return lines.flatMap((line) => (assigns("M_t")(line) ? [line, mu, product] : [line]));
    },
    RAdam(lines, o, { t }) {
      const beta2 = o.betas[1];
      const rho = 2 / (1 - beta2) - 1;
      const adapts = rho - (2 * t * Math.pow(beta2, t)) / (1 - Math.pow(beta2, t)) > 5;
      const [adapted, plain] = lines.filter(assigns("p")).slice(-2);
      return lines.filter(
        (line) => line !== (adapts ? plain : adapted) && (adapts || !assigns("r")(line)),
      );
    },
    AdaBound: (lines, o) =>
      o.amsbound
        ? lines.map((line) => (assigns("rate")(line) ? largest(line) : line))
        : without(lines, "vmax"),
    Adan: (lines, o, { t }) => (t === 1 ? exchanged(lines, "d <- 0") : lines),
    ADOPT: (lines, o, { t }) =>
      t === 1 ? [...without(lines, "u", "c", "v", "m").slice(0, -1), "v <- g^2", "p <- p"] : lines,
    OptimisticAdam(lines, o, { t }) {
      const [p, u] = [lines.findLast(assigns("p")), nth(lines, "u")];
      if (t > 1) return lines;
      return [...lines.filter((line) => line !== p && line !== u), u, p];
    },
    AggMo(lines, o) {
      const numbers = o.betas.map((_, k) => k);
      const sum = numbers.map((k) => `b${k}`).join(" + ");
      return lines.flatMap((line) =>
        assigns("bk")(line)
          ? numbers.map((k) => line.replaceAll("bk", `b${k}`).replace("[k]", `[${k}]`))
          : [line.replace("b0 + b1 + ...", sum).replace(" )", ")")],
      );
    },
    Rprop(lines, o, { t, values }) {
      const [first, longer, shorter, cut] = lines.filter(assigns("length"));
      const g = values.grad + o.weight_decay * values.p;
      const turned = Math.sign(g) * Math.sign(values.prev);
      const other = turned > 0 ? longer : turned < 0 ? shorter : "length <- length";
      const prev = turned < 0 ? "prev <- 0" : "prev <- g";
      return [nth(lines, "g"), t === 1 ? first : other, cut, prev, nth(lines, "p")];
    },
    FTRL(lines, o) {
      if (o.learning_rate_power !== 0) return lines;
      return exchanged(lines, "s <- 0").map((line) => line.replace("sqrt(n) + 2", "1 + 2"));
    },
    ScheduleFreeSGD(lines, o, { values }) {
      const all = o.warmup_steps > 0 ? lines : exchanged(lines, "s <- lr");
      const counts = values.total > 0 || Math.pow(o.lr, o.weight_lr_power) > 0;
      return counts ? all : exchanged(all, "c <- 0"); // as the rule has it, for 0 / 0
    },
    ScheduleFreeAdamW: (lines, o, here) => CHOSEN.ScheduleFreeSGD(lines, o, here),
  };

  const WRITTEN_AS = { AdamW: "Adam" }; // whose docstring refers to another's

  function chosen(name, options, here) {
    // what stands in for an eps of 0 is added outside the root
    const o = options.eps === 0 ? { ...options, eps_inside_sqrt: false } : options;
    const apart = APART.includes(name) || o.decoupled_weight_decay === true;
    const lines = decayed(ofDocstring(WRITTEN_AS[name] ?? name), o, apart);
    const held = CHOSEN[name] ? CHOSEN[name](lines, o, here) : lines;
    const uses = held.some((line) => /\bg\b/.test(split(line).right));
    return uses && !held.some(assigns("g")) ? ["g <- grad", ...held] : held;
  }

  // ----------------------------------------------------------------------------------------------
  // What the names stand for.

  const GUARD = Math.pow(2, -511); // what stands in for an eps of 0, as in the package

  const PLACES = ["p", "y"]; // what the formulas call the parameter

  // Options by the names that formulas have for them, those of their elements among them: beta1 and
  // betas[0] of betas.
  function ofOptions(options) {
    const values = {};
    for (const [option, value] of Object.entries(options)) {
      if (Array.isArray(value)) {
        value.forEach((one, k) => {
          values[`${option}[${k}]`] = one;
          values[`${option.replace(/s$/, "")}${k + 1}`] = one;
        });
        values.K = value.length;
      } else if (typeof value === "number") {
        values[option] = values[option.replace("_regularization_strength", "")] = value;
      }
    }
    if (values.eps === 0) values.eps = GUARD;
    return values;
  }

  // By optimizer: names that stand for neither an option nor a state as it is.
  const firstPlace = ({ p, p0 }, t) => ({ p0: t === 1 ? p : p0 });
  const scheduleFree = (share) => (values, t, before, o) => ({
    y: values.p,
    z: values.p + values.d,
    x: values.p + (1 - 1 / share(o)) * values.d,
    peak: before?.memory.peak ?? 0,
    total: before?.memory.total ?? 0,
  });
  const OF_STEP = {
    NAdam({ beta1, momentum_decay }, t) {
      let product = 1;
      for (let k = 1; k < t; k += 1) {
        product *= beta1 * (1 - 0.5 * Math.pow(0.96, k * momentum_decay));
      }
      return { "M_(t-1)": product };
    },
    MADGRAD: firstPlace,
    COCOB: firstPlace,
    FTRL: ({ beta }, t, before, o) => ({
      beta: beta === 0 && o.learning_rate_power !== 0 ? GUARD : beta,
    }),
    ScheduleFreeSGD: scheduleFree((o) => o.momentum),
    ScheduleFreeAdamW: scheduleFree((o) => o.betas[0]),
  };

  function atBegin(name, options, step, before, coordinate) {
    const fill = State.described(name).fill(options);
    const values = ofOptions(options);
    const given = new Set([...Object.keys(values), "t"]);
    Object.assign(values, {
      t: step.t,
      grad: step.gradient[coordinate],
      p: step.before[coordinate],
    });
    for (const slot of Object.keys(step.state)) {
      values[slot] = before ? before.state[slot][coordinate] : (fill[slot] ?? 0);
    }
    Object.assign(values, OF_STEP[name]?.(values, step.t, before, options));
    for (const [key, value] of Object.entries(values)) if (value === GUARD) given.delete(key);
    return { values, given };
  }

  // ----------------------------------------------------------------------------------------------
  // How many digits are shown.

  const FEWEST = 4;
  const MOST = 12;
  const ZERO = 1e-12; // of the numbers in a line: what is less is 0
  const ALL = 15; // what is given is shown as it is

  // As many digits of a result as show by how much it differs from what the name stood for before.
  function digitsOf(result, old) {
    const change = Math.abs(result - old);
    const size = Math.max(Math.abs(result), Math.abs(old));
    if (!(change > 0 && size < Infinity)) return FEWEST;
    return Math.min(MOST - 2, Math.max(FEWEST, Math.ceil(Math.log10(size / change)) + 2));
  }

  const lastPlace = (number, digits) =>
    Math.pow(10, Math.floor(Math.log10(Math.abs(number))) - digits + 1);

  // {texts: of the numbers in a line, with as few digits as a reader needs to come to the result;
  // rounding: whether more than MOST would be needed, as for a difference of which nothing else is
  // left: it has the fewest then}. The guard is shown as the 0 that it stands for, unless it matters.
  function written(tree, values, given, result, digits) {
    const names = Formula.names(tree);
    const guards = names.filter((name) => values[name] === GUARD);
    const trials = guards.length ? [0, GUARD] : [GUARD];
    const size = Math.max(0, ...names.map((name) => Math.abs(values[name])));
    const limit = result === 0 ? ZERO * size : 0.5 * lastPlace(result, digits);
    for (let shown = FEWEST; shown <= MOST; shown += 1) {
      for (const guard of trials) {
        const rounded = {};
        for (const name of names) {
          const value = guards.includes(name) ? guard : values[name];
          rounded[name] = Numbers.rounded(value, given.has(name) ? ALL : shown);
        }
        const off = Math.abs(Formula.value(tree, rounded) - result);
        if (off <= limit || !Number.isFinite(result))
          return { texts: texts(rounded), rounding: false };
      }
    }
    const fewest = names.map((name) => [name, Numbers.rounded(values[name], FEWEST)]);
    return { texts: texts(Object.fromEntries(fewest)), rounding: true };
  }

  const texts = (numbers) =>
    Object.fromEntries(
      Object.entries(numbers).map(([name, value]) => [name, Numbers.significant(value, ALL)]),
    );

  // By optimizer: what a line comes to where rounding can be all that is left, as the rule has it.
  const AS_THE_RULE = {
    RMSprop: {
      w: (values, { state, scalars }, n) =>
        state.a
          ? Math.abs(state.v[n] - scalars.factor * (state.a[n] * state.a[n])) / values.c
          : null,
    },
  };

  // The lines of one step for one coordinate: [{left, right, tree, texts: of the numbers that the
  // names stand for, result: a text, rounding: whether that is only what rounding left, value: what
  // it is exactly, last: whether that is where the step leads}]. before: the step before it, or null.
  function of(name, options, step, before, coordinate) {
    const { values, given } = atBegin(name, options, step, before, coordinate);
    const lines = chosen(name, options, { t: step.t, values: { ...values } }).map(split);
    const last = lines.findLast(({ left }) => PLACES.includes(left)); // where the run really goes
    return lines.map((line) => {
      const { left, right } = line;
      const tree = Formula.parseRule(right, Object.keys(values));
      const value =
        line === last
          ? step.after[coordinate]
          : (AS_THE_RULE[name]?.[left]?.(values, step, coordinate) ?? Formula.value(tree, values));
      const digits = digitsOf(value, values[left]);
      const shown = written(tree, values, given, value, digits);
      values[left] = value;
      const result = Numbers.significant(value, digits);
      return { left, right, tree, ...shown, result, value, last: line === last };
    });
  }

  return { of, PLACES };
})();
