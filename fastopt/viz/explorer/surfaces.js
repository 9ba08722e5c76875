// The costs, each with its gradient, and the noise that mini-batches put on a gradient.
"use strict";

const Surfaces = (() => {
  // A bowl that is `condition` times as curved along y as along x.
  function bowl(setup) {
    const c = setup.condition;
    return {
      value: (x, y) => 0.5 * (x * x + c * y * y),
      gradient: (x, y) => [x, c * y],
    };
  }

  function rosenbrock() {
    return {
      value: (x, y) => (1 - x) * (1 - x) + 100 * (y - x * x) * (y - x * x),
      gradient: (x, y) => [-2 * (1 - x) - 400 * x * (y - x * x), 200 * (y - x * x)],
    };
  }

  function beale() {
    const parts = (x, y) => [1.5 - x + x * y, 2.25 - x + x * y * y, 2.625 - x + x * y * y * y];
    return {
      value: (x, y) => parts(x, y).reduce((sum, part) => sum + part * part, 0),
      gradient: (x, y) => {
        const [a, b, c] = parts(x, y);
        return [
          2 * (a * (y - 1) + b * (y * y - 1) + c * (y * y * y - 1)),
          2 * (a * x + b * 2 * x * y + c * 3 * x * y * y),
        ];
      },
    };
  }

  function saddle() {
    return {
      value: (x, y) => 0.5 * x * x - 0.5 * y * y + (y * y * y * y) / 16,
      gradient: (x, y) => [x, -y + (y * y * y) / 4],
    };
  }

  // centre and width of what is shown (its height is 3/5 of the width), where runs begin, where
  // the lowest points are, how noisy the gradients are unless one says otherwise, and what the two
  // coordinates are called.
  const PLAIN = ["x", "y"];
  const VALLEY = ["x, along the valley", "y, across it"];
  const ALL = {
    bowl: {
      axes: VALLEY,
      title: "Oblong bowl",
      make: bowl,
      view: [0, 0, 10],
      start: [-4, 1.5],
      goals: [[0, 0]],
      noise: 0,
      text: "½ (x² + c·y²): c times as curved across (y) as along (x)",
    },
    rosenbrock: {
      axes: PLAIN,
      title: "Rosenbrock’s valley",
      make: rosenbrock,
      view: [0, 0.7, 4.4],
      start: [-1.2, 1],
      goals: [[1, 1]],
      noise: 0,
      text: "(1 − x)² + 100 (y − x²)²: a bent, flat valley between steep walls",
    },
    beale: {
      axes: PLAIN,
      title: "Beale’s function",
      make: beale,
      view: [1, 0.2, 8],
      start: [1, 1.6],
      goals: [[3, 0.5]],
      noise: 0,
      text: "(1.5 − x + xy)² + (2.25 − x + xy²)² + (2.625 − x + xy³)²: flat, with steep corners",
    },
    saddle: {
      axes: PLAIN,
      title: "Saddle",
      make: saddle,
      view: [0, 0, 10],
      start: [-4, 0.01],
      goals: [
        [0, 2],
        [0, -2],
      ],
      noise: 0,
      text: "½x² − ½y² + y⁴⁄16: flat in the middle, lowest at y = 2 and y = −2",
    },
    noisy: {
      axes: VALLEY,
      title: "Bowl from mini-batches",
      make: bowl,
      view: [0, 0, 10],
      start: [-4, 1.5],
      goals: [[0, 0]],
      noise: 4,
      text: "the same bowl as the mean of 64 examples, of which each step sees a few",
    },
    formula: {
      axes: PLAIN,
      title: "Your own formula",
      view: [0, 0, 10],
      start: [-3, 2],
      goals: [],
      noise: 0,
      make: (setup) => Formula.surface(setup.formula),
      text: "a cost in x and y that you write",
    },
  };

  // Numbers in [0, 1) from a seed, the same everywhere: a linear congruential generator, of which
  // the upper 32 of 48 bits are used. Exact in integers of JavaScript and of Python.
  function generator(seed) {
    let state = (BigInt(seed) * 2862933555777941757n + 3037000493n) & 0xffffffffffffn;
    return () => {
      state = (state * 25214903917n + 11n) & 0xffffffffffffn;
      return Number(state >> 16n) / 4294967296;
    };
  }

  const EXAMPLES = 64;

  // The cost of example i is f(x, y) + amount * (a_i x + b_i y), and all a_i, all b_i add up to 0:
  // the mean over all examples is f. A step sees the mean over a batch; after EXAMPLES / batch
  // steps, which is one epoch, every example has been seen once, and they are shuffled anew.
  // Returns what each step's gradient is off by, as [along x, along y].
  function batchNoise(amount, batch, seed, steps) {
    const random = generator(seed);
    const examples = [];
    for (let i = 0; i < EXAMPLES; i += 1) {
      examples.push([0, 1].map(() => random() + random() + random() - 1.5));
    }
    for (const axis of [0, 1]) {
      const mean = examples.reduce((sum, one) => sum + one[axis], 0) / EXAMPLES;
      for (const one of examples) one[axis] -= mean;
    }
    const order = examples.map((_, i) => i);
    const noise = [];
    while (noise.length < steps) {
      for (let i = EXAMPLES - 1; i > 0; i -= 1) {
        const j = Math.floor(random() * (i + 1));
        [order[i], order[j]] = [order[j], order[i]];
      }
      for (let at = 0; at < EXAMPLES; at += batch) {
        const sum = [0, 0];
        for (const i of order.slice(at, at + batch)) {
          sum[0] += examples[i][0];
          sum[1] += examples[i][1];
        }
        noise.push([(amount * sum[0]) / batch, (amount * sum[1]) / batch]);
      }
    }
    return noise.slice(0, steps);
  }

  return { ALL, EXAMPLES, generator, batchNoise };
})();
