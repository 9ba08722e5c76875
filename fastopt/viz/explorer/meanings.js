// What a line of a formula works out, in words.
"use strict";

const Meanings = (() => {
  const MEANING = {
    g: "the gradient that is used",
    p: "the place",
    y: "the place",
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
  const SCHEDULE_FREE = {
    s: "the rate, after warm-up",
    peak: "what a step counts by: the largest so far",
    w: "how much this step counts",
    total: "how much all have counted",
    c: "this step’s share of the average",
    z: "where plain steps lead",
    x: "average of z: what to evaluate at",
    y: "the place, between x and z",
  };
  const OWN = {
    SGD: { v: "sum of steps, of which a share fades in each step" },
    Momentum: { v: "average of g, as Adam’s m" },
    RMSprop: { c: "by which v is corrected; 1: not at all", w: "what stands under the root" },
    Adadelta: { u: "average of d²", d: "the step, before lr" },
    Adamax: { u: "largest |g|, which fades" },
    NAdam: {
      mu_t: "momentum in this step, which rises to beta1",
      M_t: "product of them so far, by which g is corrected",
      "mu_(t+1)": "momentum in the next step",
      "M_(t+1)": "product with it, by which m is corrected",
      n: "average as the next step will have it, corrected",
    },
    AdaBelief: { v: "average of (g − m)²" },
    Yogi: { v: "moves to g² by a share of g²" },
    AdaBound: {
      rate: "Adam’s rate for this coordinate",
      final: "the rate of SGD, where the bounds meet",
      lower: "smallest rate that there may be by now",
      upper: "largest rate that there may be by now",
    },
    Adan: {
      d: "change of the gradient; 0 in the first step",
      v: "average of d",
      n: "average of the square of g with its change",
      c2: "by which v is corrected",
      c3: "by which n is corrected",
    },
    AdEMAMix: { slow: "slow average of g" },
    ADOPT: {
      m: "average of u",
      u: "g over the root of v as it was, then cut to ±c",
      c: "longest u that is let through",
    },
    LaProp: { m: "average of g over the root of v" },
    QHAdam: { up: "mix of average and gradient" },
    OptimisticAdam: { "u'": "Adam’s direction now", u: "kept, as the one before" },
    MADGRAD: { s: "weighted sum of g", v: "weighted sum of g²", z: "where the sum leads from p0" },
    Lion: { c: "average of which the sign is taken" },
    AggMo: {
      b0: "sum of g, of which betas[0] is kept",
      b1: "sum of g, of which betas[1] is kept",
      b2: "sum of g, of which betas[2] is kept",
    },
    Rprop: {
      length: "how long the step is: longer, while signs stay; within its bounds",
      prev: "g for the next step’s comparison; 0 after a turn",
    },
    ASGD: { eta: "the rate, which falls", mean: "mean of the places after step t0" },
    FTRL: {
      s: "by how much the root grows",
      n: "sum of g²",
      z: "what the place is worked out from",
    },
    COCOB: {
      g: "the gradient, by lr",
      peak: "largest |g| so far",
      total: "sum of |g|",
      reward: "what bets have won",
      theta: "sum of −g",
    },
    ScheduleFreeSGD: SCHEDULE_FREE,
    ScheduleFreeAdamW: { ...SCHEDULE_FREE, g: "the gradient over the root of v" },
  };

  function of(name, { left, right }) {
    if (Lines.PLACES.includes(left) && /\* weight_decay\b/.test(right)) {
      return "weight decay, off the place itself";
    }
    return OWN[name]?.[left] ?? MEANING[left];
  }

  return { of };
})();
