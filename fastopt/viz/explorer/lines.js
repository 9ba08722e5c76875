// The lines of a docstring's formula that hold for the options chosen, with the numbers of a step
// written into them. They are worked out here, line by line, from the text that is shown, so that a
// reader can check them against what the package's rule did.
"use strict";

const Lines = (() => {
  const decayed = (o) =>
    !(o.weight_decay > 0)
      ? ["g <- grad"]
      : o.decoupled_weight_decay
        ? ["g <- grad", "p <- p - lr * weight_decay * p"]
        : ["g <- grad + weight_decay * p"];

  function adam(o) {
    const v = o.amsgrad ? "vmax" : "v";
    let last = `p <- p - lr * (m / c1) / (sqrt(${v} / c2) + eps)`;
    if (o.eps_inside_sqrt) last = `p <- p - lr * (m / c1) / sqrt(${v} / c2 + eps)`;
    if (o.eps_hat) last = `p <- p - lr * sqrt(c2) / c1 * m / (sqrt(${v}) + eps)`;
    if (o.eps_hat && o.eps_inside_sqrt) last = `p <- p - lr * sqrt(c2) / c1 * m / sqrt(${v} + eps)`;
    return [
      ...decayed(o),
      "m <- beta1 * m + (1 - beta1) * g",
      "v <- beta2 * v + (1 - beta2) * g^2",
      ...(o.amsgrad ? ["vmax <- max(vmax, v)"] : []),
      ...(o.bias_correction ? ["c1 <- 1 - beta1^t", "c2 <- 1 - beta2^t"] : ["c1 <- 1", "c2 <- 1"]),
      last,
    ];
  }

  // By optimizer: the lines for the options o in step t.
  const CHOSEN = {
    SGD(o, t) {
      if (o.momentum > 0 && o.lr_inside) {
        const last = o.nesterov ? "p <- p + momentum * v - lr * g" : "p <- p + v";
        return [...decayed(o), "v <- momentum * v - lr * g", last];
      }
      if (!(o.momentum > 0)) return [...decayed(o), "d <- g", "p <- p - lr * d"];
      return [
        ...decayed(o),
        t === 1 ? "buf <- g" : "buf <- momentum * buf + (1 - dampening) * g",
        o.nesterov ? "d <- g + momentum * buf" : "d <- buf",
        "p <- p - lr * d",
      ];
    },
    Momentum: (o) => [
      ...decayed(o),
      "v <- beta * v + (1 - beta) * g",
      o.bias_correction ? "p <- p - lr * v / (1 - beta^t)" : "p <- p - lr * v",
    ],
    Adagrad: (o) => [
      ...decayed(o),
      "s <- s + g^2",
      `p <- p - lr / (1 + (t - 1) * lr_decay) * g / ${o.eps_inside_sqrt ? "sqrt(s + eps)" : "(sqrt(s) + eps)"}`,
    ],
    RMSprop(o) {
      const lines = [...decayed(o), "v <- beta * v + (1 - beta) * g^2"];
      if (o.centered) lines.push("a <- beta * a + (1 - beta) * g");
      lines.push(o.bias_correction ? "c <- 1 - beta^t" : "c <- 1");
      lines.push(o.centered ? "w <- abs(v / c - (a / c)^2)" : "w <- v / c");
      lines.push(o.eps_inside_sqrt ? "d <- g / sqrt(w + eps)" : "d <- g / (sqrt(w) + eps)");
      if (!(o.momentum > 0)) return [...lines, "p <- p - lr * d"];
      if (o.lr_inside) return [...lines, "u <- momentum * u + lr * d", "p <- p - u"];
      return [...lines, "buf <- momentum * buf + d", "p <- p - lr * buf"];
    },
    Adam: adam,
    Adadelta: (o) => [
      ...decayed(o),
      "v <- rho * v + (1 - rho) * g^2",
      "d <- sqrt(u + eps) / sqrt(v + eps) * g",
      "u <- rho * u + (1 - rho) * d^2",
      "p <- p - lr * d",
    ],
    Adamax: (o) => [
      ...decayed(o),
      "m <- beta1 * m + (1 - beta1) * g",
      "u <- max(beta2 * u, abs(g) + eps)",
      "p <- p - lr / (1 - beta1^t) * m / u",
    ],
    RAdam(o, t) {
      const beta2 = o.betas[1];
      const rho = 2 / (1 - beta2) - 1;
      const adapts = rho - (2 * t * Math.pow(beta2, t)) / (1 - Math.pow(beta2, t)) > 5;
      return [
        ...decayed(o),
        "m <- beta1 * m + (1 - beta1) * g",
        "v <- beta2 * v + (1 - beta2) * g^2",
        "c1 <- 1 - beta1^t",
        "c2 <- 1 - beta2^t",
        "rho <- 2 / (1 - beta2) - 1",
        "rho_t <- rho - 2 * t * beta2^t / c2",
        ...(adapts
          ? [
              "r <- sqrt((rho_t - 4) * (rho_t - 2) * rho / ((rho - 4) * (rho - 2) * rho_t))",
              "p <- p - lr * r * sqrt(c2) / c1 * m / (sqrt(v) + eps)",
            ]
          : ["p <- p - lr / c1 * m"]),
      ];
    },
    AdaBelief: (o) => [
      ...decayed({ ...o, decoupled_weight_decay: true }),
      "m <- beta1 * m + (1 - beta1) * g",
      "v <- beta2 * v + (1 - beta2) * (g - m)^2 + eps_root",
      "c1 <- 1 - beta1^t",
      "c2 <- 1 - beta2^t",
      "p <- p - lr * (m / c1) / (sqrt(v / c2) + eps)",
    ],
    Yogi: (o) => [
      ...decayed(o),
      "m <- beta1 * m + (1 - beta1) * g",
      "v <- v - (1 - beta2) * sign(v - g^2) * g^2",
      "c1 <- 1 - beta1^t",
      "c2 <- 1 - beta2^t",
      "p <- p - lr * (m / c1) / (sqrt(v / c2) + eps)",
    ],
    Lion: (o) => [
      ...(o.weight_decay > 0 ? ["p <- p - lr * weight_decay * p"] : []),
      "c <- beta1 * m + (1 - beta1) * grad",
      "m <- beta2 * m + (1 - beta2) * grad",
      "p <- p - lr * sign(c)",
    ],
    Signum: (o) => [
      ...decayed(o),
      "m <- momentum * m + (1 - momentum) * g",
      "p <- p - lr * sign(m)",
    ],
    QHM: (o) => [
      ...decayed(o),
      "m <- momentum * m + (1 - momentum) * g",
      "p <- p - lr * (nu * m + (1 - nu) * g)",
    ],
    AdamW: (o) => adam({ ...o, decoupled_weight_decay: true }),
  };

  // What a line works out, in words.
  const MEANING = {
    g: "the gradient that is used",
    p: "the place",
    m: "average of g",
    v: "average of g²",
    s: "sum of g²",
    vmax: "largest v so far",
    c1: "by which m is corrected; 1: not at all",
    c2: "by which v is corrected; 1: not at all",
    a: "average of g",
    buf: "sum of what comes in, of which a share fades in each step",
    u: "sum of what comes in, of which a share fades in each step",
    d: "the direction of the step",
    rho: "how long v’s memory can become",
    rho_t: "how long it is by now",
    r: "shortens the step while v is uncertain",
  };
  const OWN = {
    SGD: { v: "sum of steps, of which a share fades in each step" },
    Momentum: { v: "average of g, as Adam’s m" },
    RMSprop: { c: "by which v is corrected; 1: not at all", w: "what stands under the root" },
    Adadelta: { u: "average of d²", d: "the step, before lr" },
    Adamax: { u: "largest |g|, which fades" },
    AdaBelief: { v: "average of (g − m)²" },
    Yogi: { v: "moves to g² by a share of g²" },
    Lion: { c: "average of which the sign is taken" },
  };

  function meaning(name, { left, right }) {
    if (left === "p" && right.includes("weight_decay")) return "weight decay, off the place itself";
    return OWN[name]?.[left] ?? MEANING[left];
  }

  const GUARD = Math.pow(2, -511); // what stands in for an eps of 0, as in the package

  const BEGINS = ["Adagrad", "Yogi"]; // whose state begins with initial_accumulator_value

  function split(line) {
    const [left, right] = line.split(" <- ");
    return { left, right };
  }

  // Text to show: arrows, dots and roots, and numbers in place of the names that `values` has.
  // Returns pieces: [text, "plain" | "number" | "raised"].
  function written(right, values) {
    const pieces = [];
    let raised = false;
    for (const token of Formula.tokens(right)) {
      let text = token.text;
      let kind = "plain";
      if (token.kind === "name" && values !== null && Object.hasOwn(values, text)) {
        const number = values[text];
        text = number < 0 ? `(${Numbers.text(number)})` : Numbers.text(number);
        kind = "number";
      } else if (text === "sqrt") text = "√";
      else if (text === "*") text = " · ";
      else if (text === "-") text = " − ";
      else if (text === "+" || text === "/") text = ` ${text} `;
      else if (text === ",") text = ", ";
      if (token.text === "^") {
        raised = true;
        continue;
      }
      pieces.push([text, raised ? "raised" : kind]);
      raised = false;
    }
    return pieces;
  }

  // The lines of one step for one coordinate, or null for an optimizer that is not written out
  // here: [{left, right, values: what the names stand for, result}].
  function of(name, options, step, before, coordinate) {
    if (!Object.hasOwn(CHOSEN, name)) return null;
    const values = { t: step.t, grad: step.gradient[coordinate], p: step.before[coordinate] };
    for (const [option, value] of Object.entries(options)) {
      if (typeof value === "number") values[option] = value;
    }
    if (Array.isArray(options.betas)) [values.beta1, values.beta2] = options.betas;
    const first = BEGINS.includes(name) ? options.initial_accumulator_value : 0;
    for (const slot of Object.keys(step.state)) {
      values[slot] = before ? before[slot][coordinate] : first;
    }
    return CHOSEN[name](options, step.t).map((line) => {
      const { left, right } = split(line);
      const shown = { ...values };
      const exact = { ...values, eps: values.eps === 0 ? GUARD : values.eps };
      const tree = Formula.parse(right, Object.keys(exact), Formula.ALL_FUNCTIONS);
      const result = Formula.value(tree, exact);
      values[left] = result;
      return { left, right, values: shown, result };
    });
  }

  return { CHOSEN, of, meaning, written, split };
})();
