// "Predict first, then see": each question is answered by numbers that are worked out here, when
// they are asked for, by running the package's rules. `answer` decides which choice is right.
"use strict";

const Questions = (() => {
  const BOWL = {
    surface: "bowl",
    condition: 20,
    start: [-4, 1.5],
    noise: 0,
    batch: 8,
    seed: 1,
    zoom: 1,
  };

  const make = (name, options) => ({ name, options });
  // The name of the state that averages gradients ("average") or their squares ("square").
  const stateOf = (name, kind) => FASTOPT.create(name, {})[kind];

  // Feeds a list of gradients (each a list of coordinates) to an optimizer; what step() returned.
  function feed(optimizer, gradients) {
    const opt = FASTOPT.create(optimizer.name, optimizer.options);
    const x = new Float64Array(gradients[0].length);
    return gradients.map((one) => opt.step(x, Float64Array.from(one)));
  }

  const repeat = (count, of) => Array.from({ length: count }, (_, t) => of(t));

  // How many of the newest gradients carry a share of an average.
  function carrying(beta, share, count) {
    const weights = Runs.weights(make("Momentum", { lr: 1, beta }), count);
    const limit = share * weights.reduce((sum, one) => sum + one, 0);
    let sum = 0;
    let steps = 0;
    while (sum < limit) {
      sum += weights[steps];
      steps += 1;
    }
    return steps;
  }

  // For how many steps an average still points the old way, once the gradient has turned round.
  function turning(beta) {
    const before = 200;
    const seen = feed(
      make("Momentum", { lr: 1, beta }),
      repeat(2 * before, (t) => [t < before ? 1 : -1]),
    );
    const average = stateOf("Momentum", "average");
    return seen.slice(before).filter((one) => one.state[average][0] > 0).length;
  }

  const RATES = repeat(61, (k) => Math.pow(10, -3 + k / 20)); // 0.001 to 1, 20 per decade

  // The least steps to within 1 % of the distance to the goal, and the learning rate that does it.
  function best(setup, name, options, most) {
    let found = { steps: Infinity, lr: NaN };
    for (const lr of RATES) {
      const steps = Runs.stepsToReach(setup, make(name, { ...options, lr }), [0, 0], 0.01, most);
      if (steps < found.steps) found = { steps, lr };
    }
    return found;
  }

  // The smallest and largest learning rate that end within 1 % of the distance in 200 steps, of
  // which the last STAY are spent there. `away` moves the start away from the goal by that factor.
  function usable(name, away = 1) {
    const setup = { ...BOWL, start: BOWL.start.map((one) => away * one) };
    const most = 200 - Runs.STAY;
    const good = RATES.filter(
      (lr) => Runs.stepsToReach(setup, make(name, { lr }), [0, 0], 0.01, most) < Infinity,
    );
    return { low: good[0], high: good[good.length - 1] };
  }

  // How far from the goal a run still gets in the last 100 of 2000 steps.
  function settles(name, lr) {
    const { points } = Runs.run({ ...BOWL, steps: 2000 }, make(name, { lr }));
    return Math.max(...points.slice(-100).map((p) => Math.hypot(p[0], p[1])));
  }

  const say = (number) => Numbers.text(number);

  const ALL = [
    {
      id: "direction",
      title: "How does an average of gradients give a steeper path?",
      ask:
        "The gradients zigzag: across they are +30, −30, +30, …; along they are always −4. Each single" +
        " gradient points 7.5 times as far across as along. What about their average (β = 0.9) after 20 steps?",
      choices: [
        ["still about 7.5 times as far across", 7.5],
        ["as far across as along", 1],
        ["less than half as far across as along", 0.4],
        ["not across at all", 1e-3],
      ],
      compute() {
        const seen = feed(
          make("Momentum", { lr: 1, beta: 0.9 }),
          repeat(20, (t) => [-4, t % 2 ? -30 : 30]),
        );
        const m = seen[19].state[stateOf("Momentum", "average")];
        return { answer: Math.abs(m[1] / m[0]), along: m[0], across: m[1] };
      },
      tell: (n) =>
        `${say(n.answer)} times as far. In the average the signs across cancel: of 30 there is` +
        ` ${say(Math.abs(n.across))} left. What stays the same adds up: of 4 along there are` +
        ` ${say(Math.abs(n.along))}. So the step points down the valley, and may be longer.`,
      look:
        "In the strips of y the gradients swing from side to side, and their average (here " +
        "with β = 0.7) much less; in those of x the two are alike. So Momentum can take twice " +
        "the learning rate, and is ahead.",
      show: {
        ...BOWL,
        steps: 60,
        t: 12,
        focus: 1,
        optimizers: [make("SGD", { lr: 0.094 }), make("Momentum", { lr: 0.2, beta: 0.7 })],
      },
    },
    {
      id: "momentum",
      title: "Does momentum get there sooner?",
      ask:
        "A bowl 100 times as curved across as along. Each method gets its best learning rate, and" +
        " the number of steps is counted until only 1 % of the distance is left. Gradient descent takes how" +
        " many times as many steps as with momentum 0.9?",
      choices: [
        ["half as many", 0.5],
        ["the same", 1],
        ["about 3 times", 3],
        ["about 100 times", 100],
      ],
      compute() {
        const setup = { ...BOWL, condition: 100 };
        const plain = best(setup, "SGD", {}, 700);
        const with9 = best(setup, "SGD", { momentum: 0.9 }, 700);
        const wide = { ...BOWL, condition: 20 };
        return {
          answer: plain.steps / with9.steps,
          plain: plain.steps,
          plainLr: plain.lr,
          momentum: with9.steps,
          momentumLr: with9.lr,
          widePlain: best(wide, "SGD", {}, 700).steps,
          wideMomentum: best(wide, "SGD", { momentum: 0.9 }, 700).steps,
        };
      },
      tell: (n) =>
        `${say(n.answer)} times: ${n.plain} steps (learning rate ${say(n.plainLr)}) against` +
        ` ${n.momentum} with momentum (learning rate ${say(n.momentumLr)}). Along the valley the steps` +
        " add up; across they cancel, so nothing flies apart.\nIt takes a long valley: on a bowl 20 times as" +
        ` curved across, gradient descent takes ${n.widePlain} steps and momentum 0.9 takes ${n.wideMomentum}.`,
      look:
        "Both have about their best learning rate. SGD’s momentum keeps a fading sum of " +
        "gradients, up to 10 times as long as their average: that is why its best learning " +
        "rate is the smaller one.",
      show: {
        ...BOWL,
        condition: 100,
        steps: 250,
        t: 60,
        focus: 1,
        optimizers: [make("SGD", { lr: 0.018 }), make("SGD", { lr: 0.007, momentum: 0.9 })],
      },
    },
    {
      id: "memory",
      title: "How many steps does an average remember?",
      ask: "In an average with β = 0.9, how many of the newest gradients carry 90 % of the weight?",
      choices: [
        ["the newest 2", 2],
        ["the newest 9", 9],
        ["the newest 22", 22],
        ["the newest 90", 90],
      ],
      compute: () => ({
        answer: carrying(0.9, 0.9, 1000),
        slow: carrying(0.99, 0.9, 10000),
        slowest: carrying(0.999, 0.9, 40000),
      }),
      tell: (n) =>
        `The newest ${n.answer}. With β = 0.99 it is ${n.slow}, with β = 0.999 it is ${n.slowest}:` +
        " each further 9 makes the memory ten times as long. The shaded band in the strips shows it.",
      look:
        "The shaded band is what carries 90 % of the average: 22 steps for β = 0.9. Choose β " +
        "= 0.99 in the legend, and it is nearly the whole run.",
      show: {
        ...BOWL,
        steps: 80,
        t: 45,
        focus: 0,
        optimizers: [
          make("Momentum", { lr: 0.1, beta: 0.9 }),
          make("Momentum", { lr: 0.1, beta: 0.99 }),
        ],
      },
    },
    {
      id: "beta",
      title: "How do I choose β?",
      ask:
        "The gradient has been +1 for 200 steps, and turns to −1. For how many steps does an average with" +
        " β = 0.99 still point the old way?",
      choices: [
        ["1", 1],
        ["6", 6],
        ["62", 62],
        ["620", 620],
      ],
      compute: () => ({ answer: turning(0.99), short: turning(0.9) }),
      tell: (n) =>
        `For ${n.answer}; with β = 0.9 for ${n.short}. A longer memory is calmer and turns later:` +
        " take β so that the memory is shorter than the time in which the slope changes, and longer than" +
        " one swing of the noise.",
      look:
        "Between the walls of the valley the gradient turns round: with β = 0.9 the average " +
        "follows soon, and the path settles; with 0.99 it follows late, and the path runs " +
        "past, again and again.",
      show: {
        ...BOWL,
        surface: "rosenbrock",
        start: [-1.2, 1],
        steps: 300,
        t: 60,
        focus: 1,
        optimizers: [
          make("Momentum", { lr: 0.001, beta: 0.9 }),
          make("Momentum", { lr: 0.001, beta: 0.99 }),
        ],
      },
    },
    {
      id: "square",
      title: "Why the square?",
      ask:
        "The gradients are +1, −1, +1, −1, … What is the root of the averaged squares (β = 0.9) after" +
        " 50 steps?",
      choices: [
        ["0, they cancel", 1e-3],
        ["about 0.05", 0.05],
        ["about 1", 1],
        ["about 50", 50],
      ],
      compute() {
        const gradients = repeat(50, (t) => [t % 2 ? -1 : 1]);
        const v = feed(make("RMSprop", { lr: 1, beta: 0.9 }), gradients)[49].state[
          stateOf("RMSprop", "square")
        ];
        const m = feed(make("Momentum", { lr: 1, beta: 0.9 }), gradients)[49];
        return {
          answer: Math.sqrt(v[0]),
          average: Math.abs(m.state[stateOf("Momentum", "average")][0]),
        };
      },
      tell: (n) =>
        `${say(n.answer)}. The average itself is ${say(n.average)}, for the signs cancel. The square takes` +
        " the sign away, so the root says how large gradients are, whichever way they point. That size is" +
        " what is divided by.",
      look:
        "This RMSprop keeps both averages (it is “centered”), and its learning rate is so " +
        "large that it jumps to and fro across the valley: in the strips of y the signs of g " +
        "alternate, its average stays near 0, and that of g² does not.",
      show: {
        ...BOWL,
        steps: 66,
        t: 60,
        focus: 0,
        optimizers: [make("RMSprop", { lr: 0.5, centered: true })],
      },
    },
    {
      id: "faster",
      title: "Is it the square that makes it faster?",
      ask:
        "On a round bowl, equally curved in all directions, gradient descent and RMSprop each get their" +
        " best learning rate. Until 1 % of the distance is left, RMSprop takes …",
      choices: [
        ["a tenth of the steps", 0.1],
        ["as many steps", 1],
        ["a few more steps (up to 3 times)", 3],
        ["far more steps (more than 10 times)", 60],
      ],
      compute() {
        const round = { ...BOWL, condition: 1 };
        const long = { ...BOWL, condition: 100 };
        const n = {
          round: best(round, "RMSprop", {}, 400).steps,
          roundPlain: best(round, "SGD", {}, 400).steps,
          long: best(long, "RMSprop", {}, 700).steps,
          longPlain: best(long, "SGD", {}, 700).steps,
        };
        return { answer: n.round / n.roundPlain, ...n };
      },
      tell: (n) =>
        `${n.round} steps against ${n.roundPlain}: nothing is gained where there is nothing to even out.` +
        ` On a bowl 100 times as curved across it is ${n.long} against ${n.longPlain}. What helps is that` +
        " each direction is divided by its own size; the square only measures that size.",
      look:
        "At first RMSprop goes as far along as across, so it does not crawl along the valley " +
        "as gradient descent (SGD) does.",
      show: {
        ...BOWL,
        condition: 100,
        steps: 120,
        t: 40,
        focus: 0,
        optimizers: [make("RMSprop", { lr: 0.06 }), make("SGD", { lr: 0.018 })],
      },
    },
    {
      id: "ratio",
      title: "The gradient across is larger. Is the step?",
      ask:
        "At the start (−4, 1.5) of the bowl the gradient is 7.5 times as large across as along. Adam’s first" +
        " step goes how many times as far across as along?",
      choices: [
        ["7.5² = 56 times", 56.25],
        ["7.5 times", 7.5],
        ["exactly as far", 1],
        ["1 / 7.5 as far", 1 / 7.5],
      ],
      compute() {
        const ratio = (optimizer) => {
          const [step] = Runs.run({ ...BOWL, steps: 1 }, optimizer).steps;
          return Math.abs(step.update[1] / step.update[0]);
        };
        return {
          answer: ratio(make("Adam", { lr: 0.1 })),
          rmsprop: ratio(make("RMSprop", { lr: 0.1 })),
          plain: ratio(make("SGD", { lr: 0.01 })),
        };
      },
      tell: (n) =>
        `Exactly as far: the ratio is ${say(n.answer)}, and RMSprop’s is ${say(n.rmsprop)}; gradient` +
        ` descent goes ${say(n.plain)} times as far across. A gradient divided by its own size is +1 or −1: the first` +
        " step is diagonal, whatever the surface.",
      look:
        "After the first step Adam has gone equally far in x and in y, and gradient descent " +
        "(SGD) mostly across. Step on: later steps differ.",
      show: {
        ...BOWL,
        steps: 60,
        t: 1,
        focus: 0,
        optimizers: [make("Adam", { lr: 0.4 }), make("SGD", { lr: 0.02 })],
      },
    },
    {
      id: "spike",
      title: "Do large gradients take small steps?",
      ask:
        "Not as such: RMSprop’s steps are equally long for a steady gradient of 0.01 and for one of 100. But" +
        " now the gradient is 1 for long, once 100, then 1 again. How long is the step after the 100" +
        " (β = 0.9), compared with those before?",
      choices: [
        ["100 times as long", 100],
        ["the same", 1],
        ["about 1⁄30 of it", 1 / 30],
        ["1⁄10 000 of it", 1e-4],
      ],
      compute() {
        const seen = feed(
          make("RMSprop", { lr: 1 }),
          repeat(202, (t) => [t === 200 ? 100 : 1]),
        );
        const length = (t) => Math.abs(seen[t].update[0]);
        const steady = (gradient) =>
          Math.abs(
            feed(
              make("RMSprop", { lr: 1 }),
              repeat(200, () => [gradient]),
            )[199].update[0],
          );
        return {
          answer: length(201) / length(199),
          during: length(200) / length(199),
          small: steady(0.01),
          large: steady(100),
        };
      },
      tell: (n) =>
        `${say(n.answer)} times as long. The step with the 100 itself is only ${say(n.during)} times as long, not` +
        " 100. Its square stays in v and divides the steps that follow, until it is forgotten." +
        ` (Steady gradients of 0.01 and of 100 make steps of ${say(n.small)} and of ${say(n.large)} times the` +
        " learning rate.)",
      look:
        "Look at the strips “average of g²” and “step”: after a large gradient the average is " +
        "large for some steps, and the steps are short.",
      show: {
        ...BOWL,
        surface: "beale",
        start: [1, 1.6],
        steps: 80,
        t: 10,
        focus: 0,
        optimizers: [make("RMSprop", { lr: 0.05 })],
      },
    },
    {
      id: "eps",
      title: "Where does ε go?",
      ask:
        "Gradients have become small: 10⁻⁶. With ε = 10⁻⁸ added outside the root, Adam’s first step is" +
        " how many times as long as with ε inside the root?",
      choices: [
        ["the same", 1],
        ["10 times", 10],
        ["about 100 times", 100],
        ["10 000 times", 1e4],
      ],
      compute() {
        const first = (inside) =>
          Math.abs(
            feed(make("Adam", { lr: 1, eps: 1e-8, eps_inside_sqrt: inside }), [[1e-6]])[0]
              .update[0],
          );
        return { answer: first(false) / first(true), outside: first(false), inside: first(true) };
      },
      tell: (n) =>
        `${say(n.answer)} times: ${say(n.outside)} of the learning rate against ${say(n.inside)}. Inside the` +
        " root, ε is compared with the square of the gradient, and acts like √ε = 0.0001 outside it.",
      look:
        "At the start the gradient is 10⁻⁶ in both directions. With ε outside the root the " +
        "steps are nearly one learning rate long; inside, a hundredth of it: that path has " +
        "hardly begun.",
      show: {
        ...BOWL,
        surface: "formula",
        formula: "1.25e-7*x^2 + 2e-7*y^2",
        start: [-4, 2.5],
        steps: 60,
        t: 20,
        focus: 1,
        optimizers: [
          make("Adam", { lr: 0.1, eps: 1e-8, eps_inside_sqrt: false }),
          make("Adam", { lr: 0.1, eps: 1e-8, eps_inside_sqrt: true }),
        ],
      },
    },
    {
      id: "bias",
      title: "Does RMSprop need the bias correction?",
      ask: "Without it, RMSprop’s first step (β = 0.9) is how many learning rates long?",
      choices: [
        ["0.1", 0.1],
        ["1", 1],
        ["3.16", 3.16],
        ["10", 10],
      ],
      compute() {
        const lengths = (name, options, count) =>
          feed(
            make(name, { lr: 1, ...options }),
            repeat(count, () => [1]),
          ).map((one) => Math.abs(one.update[0]));
        const without = lengths("RMSprop", { bias_correction: false }, 100);
        const corrected = lengths("RMSprop", { bias_correction: true }, 100);
        const adam = lengths("Adam", { bias_correction: false }, 6000);
        return {
          answer: without[0],
          corrected: corrected[0],
          until: without.findLastIndex((one) => one > 1.05) + 1,
          adam: adam[0],
          adamMost: Math.max(...adam),
          adamUntil: adam.findLastIndex((one) => one > 1.05) + 1,
        };
      },
      tell: (n) =>
        `${say(n.answer)}, against ${say(n.corrected)} with it. The first ${n.until} steps are more than 5 % too` +
        " long, and then it is over: RMSprop with β = 0.9 can do without. Adam’s second average remembers a" +
        ` hundred times longer: without the correction its first step is ${say(n.adam)} learning rates` +
        ` long, the longest ${say(n.adamMost)}, and the first ${n.adamUntil} are more than 5 % too long.`,
      look:
        "The first step is shown: without the correction it is 3.16 learning rates long, with " +
        "it 1. Step on, and the two soon become about equally long.",
      show: {
        ...BOWL,
        steps: 60,
        t: 1,
        focus: 0,
        optimizers: [
          make("RMSprop", { lr: 0.2, bias_correction: false }),
          make("RMSprop", { lr: 0.2, bias_correction: true }),
        ],
      },
    },
    {
      id: "settle",
      title: "RMSprop with ten times the learning rate: where does it settle?",
      ask:
        "RMSprop runs for 2000 steps with learning rate 0.01, and again with 0.1. How many times as far from" +
        " the lowest point does it stay?",
      choices: [
        ["equally close", 1],
        ["about 3 times", 3],
        ["about 10 times", 10],
        ["about 100 times", 100],
      ],
      compute() {
        const [small, large] = [settles("RMSprop", 0.01), settles("RMSprop", 0.1)];
        return { answer: large / small, small, large, plain: settles("SGD", 0.09) };
      },
      tell: (n) =>
        `${say(n.answer)} times: ${say(n.large)} against ${say(n.small)}. Its steps are about one learning` +
        " rate long even where gradients are tiny, so it keeps jumping over the lowest point. Gradient descent’s steps" +
        ` shrink with the gradient: it ends at ${say(n.plain)}. Lower the learning rate towards the end.`,
      look:
        "The picture is magnified 32 times, to the lowest point: with lr = 0.1 the path jumps " +
        "around it, with 0.01 ten times as near.",
      show: {
        ...BOWL,
        steps: 800,
        t: 780,
        focus: 0,
        zoom: 32,
        optimizers: [make("RMSprop", { lr: 0.1 }), make("RMSprop", { lr: 0.01 })],
      },
    },
    {
      id: "window",
      title: "Why is RMSprop so sensitive to the learning rate?",
      ask:
        "Which learning rates bring RMSprop within 1 % of the distance in 200 steps, and keep it there? The" +
        " largest of them is how many times the smallest?",
      choices: [
        ["less than 2 times", 1.3],
        ["about 10 times", 10],
        ["about 100 times", 100],
        ["any will do", 1e3],
      ],
      compute() {
        const [rms, rmsFar] = [usable("RMSprop"), usable("RMSprop", 10)];
        const [plain, plainFar] = [usable("SGD"), usable("SGD", 10)];
        return {
          answer: rms.high / rms.low,
          low: rms.low,
          high: rms.high,
          farLow: rmsFar.low,
          farHigh: rmsFar.high,
          plainLow: plain.low,
          plainHigh: plain.high,
          plainFarLow: plainFar.low,
          plainFarHigh: plainFar.high,
          nearer: settles("RMSprop", 0.1) / settles("RMSprop", 0.01),
        };
      },
      tell: (n) =>
        `${say(n.answer)} times: from ${say(n.low)} to ${say(n.high)}. The learning rate is the length of a` +
        " step: smaller, and 200 steps do not get there; larger, and it stays too far away (ten times the" +
        ` rate, ${say(n.nearer)} times as far).\nSo the right one depends on how far there is to go: from a` +
        ` start ten times as far it is ${say(n.farLow)} to ${say(n.farHigh)}, and none is good for both.` +
        "\nGradient descent’s steps shrink with the gradient; it can keep its own:" +
        ` ${say(n.plainLow)} to ${say(n.plainHigh)}, and from far ${say(n.plainFarLow)} to` +
        ` ${say(n.plainFarHigh)}.\nThis holds for a smooth bowl and a goal of 1 %. Where less is asked,` +
        " as in the manual’s example of digits (noisy mini-batches, a loss below 0.15), the factor within" +
        " which RMSprop’s learning rates work is the larger one.",
      look:
        "At the end: with 0.01 it has not arrived, with 0.04 it has, and with 0.3 it keeps " +
        "jumping around the lowest point.",
      show: {
        ...BOWL,
        steps: 200,
        t: 200,
        focus: 1,
        optimizers: [
          make("RMSprop", { lr: 0.01 }),
          make("RMSprop", { lr: 0.04 }),
          make("RMSprop", { lr: 0.3 }),
        ],
      },
    },
    {
      id: "epoch",
      title: "Epoch by epoch: does the average start anew?",
      ask:
        "64 examples in batches of 8: one epoch is 8 steps. After the second epoch, what share of the average" +
        " (β = 0.9) still comes from the first?",
      choices: [
        ["none", 1e-3],
        ["30 %", 0.3],
        ["50 %", 0.5],
        ["90 %", 0.9],
      ],
      compute() {
        const weights = Runs.weights(make("Momentum", { lr: 1, beta: 0.9 }), 16);
        const sum = (list) => list.reduce((total, one) => total + one, 0);
        return { answer: sum(weights.slice(8)) / sum(weights), steps: Surfaces.EXAMPLES / 8 };
      },
      tell: (n) =>
        `${say(100 * n.answer)} %. The optimizer counts steps, not epochs: m and v go on across the border` +
        ` (the dotted lines, every ${n.steps} steps). An epoch only says when every example has been seen once.`,
      look:
        "Dotted lines end an epoch, of 8 steps. The average of g goes on across them; the " +
        "shaded band reaches into the epoch before.",
      show: {
        ...BOWL,
        surface: "noisy",
        noise: 4,
        batch: 8,
        seed: 1,
        steps: 64,
        t: 16,
        focus: 1,
        optimizers: [make("SGD", { lr: 0.05 }), make("Momentum", { lr: 0.05, beta: 0.9 })],
      },
    },
  ];

  // The choice whose value is nearest to the answer, as a factor.
  function right(question, numbers) {
    const off = question.choices.map(([, value]) =>
      Math.abs(Math.log(Math.max(value, 1e-12) / Math.max(numbers.answer, 1e-12))),
    );
    return off.indexOf(Math.min(...off));
  }

  return { ALL, right };
})();
