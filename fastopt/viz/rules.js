// Optimizers that step in JavaScript: what is the same for all of them.
//
// The page has, in one function with this text: FORMULAS, the package's own formulas of the scalars
// of a step, translated from Python; RULES, its rules for one element, translated from their CUDA
// C++; OPTIMIZERS, which says what there is, with options and defaults. All numbers are doubles.

// ------------------------------------------------------------------------------------------------
// What formulas call, and is not translated.

function larger(a, b) {
  return b > a ? b : a;
}

function smaller(a, b) {
  return b < a ? b : a;
}

function together(compute, ...values) {
  return compute(...values);
}

function learning_rate(options) {
  return options.lr;
}

function power_of(base, exponent) {
  return Math.pow(base, exponent);
}

// 1 minus the product of NAdam's momentum in the first t steps, by the series of its logarithm.
function one_minus_risen_of(beta1, rise, t) {
  if (beta1 === 0) return 1;
  const whole = t * Math.log(beta1);
  if (whole < -50) return 1;
  const a = rise * Math.log(0.96);
  let sum = 0;
  for (let k = 56; k >= 1; --k) {
    const each = Math.expm1(k * a);
    const of_steps = each !== 0 ? (1 + each) * (Math.expm1(k * t * a) / each) : t;
    sum += Math.pow(0.5, k) / k * of_steps;
  }
  return -Math.expm1(whole - sum);
}

// The learning rate of Schedule-Free's t-th step, and what the step counts by.
function warmed_up({ warmup_steps, weight_lr_power, r }, lr, t) {
  const rate = t < warmup_steps ? lr * (t / warmup_steps) : lr;
  const counts = { rate: power_of(rate, weight_lr_power), factor: power_of(t, r) };
  for (const name of Object.keys(counts)) counts[name] = smaller(counts[name], Number.MAX_VALUE);
  return [rate, counts];
}

// ------------------------------------------------------------------------------------------------
// State that is about to become denormal is set to 0, in every eighth step (core/denormals.py).

const FLUSH_EVERY = 8;
const NORMAL = Math.pow(2, -1022);
const GUARD = Math.pow(2, -511);
const SMALLEST_EPS = Math.pow(2, -998);

function tiny(floor) {
  const highest = Math.pow(2, -900);
  const lowest = 8 * NORMAL;
  const signed = larger(smaller(highest, floor * Math.pow(2, -60)), lowest);
  let positive = smaller(highest, floor * floor * Math.pow(2, -112));
  if (positive < lowest) positive = floor === 0 || floor >= 4 * GUARD ? lowest : 0;
  return { signed, positive };
}

// ------------------------------------------------------------------------------------------------
// Options: what is given is held against the class's own ranges.

function show(value) {
  if (Array.isArray(value)) return `[${value.map(show).join(", ")}]`;
  return typeof value === "string" ? JSON.stringify(value) : String(value);
}

function checkNumber(name, value, range) {
  const { low, high, lowOpen, highOpen, whole, said } = range;
  const inside =
    typeof value === "number" &&
    Number.isFinite(value) &&
    (!whole || Number.isInteger(value)) &&
    (low === null || (lowOpen ? value > low : value >= low)) &&
    (high === null || (highOpen ? value < high : value <= high));
  if (!inside) {
    throw new Error(`${name} must be a ${said}; got ${show(value)}. Give such a number`);
  }
}

function checkOption(name, value, option) {
  const { kind, ranges, choices } = option;
  if (kind === "flag") {
    if (typeof value !== "boolean") {
      throw new Error(`${name} must be true or false; got ${show(value)}. Give one of them`);
    }
  } else if (kind === "choice") {
    if (!choices.includes(value)) {
      throw new Error(
        `${name} must be one of ${show(choices)}; got ${show(value)}. Give one of them`);
    }
  } else if (kind === "number") {
    checkNumber(name, value, ranges[0]);
  } else {
    if (!Array.isArray(value) || value.length !== ranges.length) {
      throw new Error(
        `${name} must be an array of ${ranges.length} numbers; got ${show(value)}. Give so many`);
    }
    value.forEach((one, k) => checkNumber(`${name}[${k}]`, one, ranges[k]));
  }
}

// What makes no sense together, and what stands for an option that is not given (_review of SGD and
// Rprop, the constructor of AdaBound).
const REVIEWS = {
  AdaBound(options) {
    if (options.base_lr === null) {
      if (options.lr === 0) {
        throw new Error(
          "AdaBound: base_lr must be given if lr is 0: the lr with which final_lr is meant, such " +
          "as its largest value; got lr=0");
      }
      options.base_lr = options.lr;
    }
  },
  SGD(options) {
    const { momentum, dampening, nesterov, lr_inside } = options;
    if (nesterov && !(momentum > 0 && dampening === 0)) {
      throw new Error(
        "SGD: nesterov=true needs momentum > 0 and dampening = 0; got momentum=" +
        `${momentum}, dampening=${dampening}. Set them so, or nesterov to false`);
    }
    if (lr_inside && dampening !== 0) {
      throw new Error(
        `SGD: lr_inside=true needs dampening = 0; got dampening=${dampening}. Set it to 0, or ` +
        "lr_inside to false");
    }
  },
  Rprop({ step_sizes }) {
    if (step_sizes[0] > step_sizes[1]) {
      throw new Error(
        "Rprop: step_sizes must be a pair of which the first is at most the second; got " +
        `${show(step_sizes)}. Exchange them`);
    }
  },
};

function completed(described, given) {
  const { name, options } = described;
  const known = options.map((option) => option.name);
  for (const key of Object.keys(given)) {
    if (!known.includes(key)) {
      throw new Error(
        `${name} has no option ${JSON.stringify(key)} here. Give one of ${known.join(", ")}`);
    }
  }
  const all = {};
  for (const option of options) {
    const value = given[option.name] === undefined ? option.value : given[option.name];
    if (value !== null || option.value !== null) {
      checkOption(`${name}: ${option.name}`, value, option);
    }
    all[option.name] = Array.isArray(value) ? [...value] : value;
  }
  if (all.eps > 0 && all.eps < SMALLEST_EPS) {
    throw new Error(
      `${name}: eps must be 0 or at least ${SMALLEST_EPS}, or it may underflow; got ${all.eps}. ` +
      "Give 0 or a larger one");
  }
  if (REVIEWS[name]) REVIEWS[name](all);
  return all;
}

// ------------------------------------------------------------------------------------------------
// Steps.

const copies = (arrays) =>
  Object.fromEntries(Object.entries(arrays).map(([name, values]) => [name, values.slice()]));

class Optimizer {
  constructor(described, options) {
    this.name = described.name;
    this.options = options;
    this.t = 0;
    // The formulas and the rule: which one depends on what is switched on.
    this._described = described;
    const acting = described.chosenBy.map((name) => (options[name] ? "1" : "0")).join("");
    const { rule, decay } = described.choices[acting];
    this.rule = rule;
    this._rule = RULES[rule];
    this._decay = decay;
    const has = (names) => names.find((name) => this._rule.state.includes(name)) ?? null;
    this.average = has(described.averages);
    this.square = has(described.squares);
    this.state = {};
    this.memory = Object.fromEntries(this._rule.memory.map((name) => [name, 0]));
    const floor = described.smallestDenominator(options);
    this._tiny = tiny(floor);
  }

  step(x, g) {
    if (!(x instanceof Float64Array && g instanceof Float64Array && x.length === g.length)) {
      throw new Error(
        `${this.name}: step takes two Float64Arrays of equal length, the parameter and its ` +
        `gradient; got lengths ${x && x.length} and ${g && g.length}. Make them with ` +
        "Float64Array.from(...)");
    }
    const { options, _rule: rule } = this;
    if (this.t === 0) this._begin(x.length);
    for (const values of Object.values(this.state)) {
      if (values.length !== x.length) {
        throw new Error(
          `${this.name}: step was called with ${values.length} elements before; got ` +
          `${x.length}. Create another optimizer for them`);
      }
    }
    const t = this.t + 1;
    const rate = options.lr;
    const made = this._described.scalars(options, rate, t, GUARD);
    const flushes = t % FLUSH_EVERY === 0;
    const around = {
      l2: this._decay === "gradient" ? options.weight_decay : 0,
      decay: this._decay === "parameter" ? rate * options.weight_decay : 0,
      signed: flushes ? this._tiny.signed : 0,
      positive: flushes ? this._tiny.positive : 0,
    };
    const scalars = Object.fromEntries(rule.scalars.map((name) => [name, made[name]]));
    if (rule.remember) Object.assign(scalars, rule.remember(this.memory, made));
    const before = x.slice();
    rule.update(x, g, this.state, scalars, around);
    this.t = t;
    return {
      t,
      scalars,
      state: copies(this.state),
      memory: { ...this.memory },
      before,
      after: x.slice(),
      gradient: g.slice(),
      update: x.map((value, k) => value - before[k]),
    };
  }

  copy() {
    const other = new Optimizer(this._described, { ...this.options });
    other.t = this.t;
    other.state = copies(this.state);
    other.memory = { ...this.memory };
    return other;
  }

  _begin(length) {
    const fill = this._described.fill(this.options);
    for (const slot of this._rule.state) {
      this.state[slot] = new Float64Array(length).fill(fill[slot] ?? 0);
    }
  }
}

function create(name, options = {}) {
  const described = OPTIMIZERS.find((one) => one.name === name);
  if (described === undefined) {
    const known = OPTIMIZERS.map((one) => one.name).join(", ");
    throw new Error(`there is no optimizer ${JSON.stringify(name)} here. Take one of ${known}`);
  }
  return new Optimizer(described, completed(described, options));
}
