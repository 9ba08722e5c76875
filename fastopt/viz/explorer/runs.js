// Runs of the package's optimizers over a surface, with all that is seen of each step.
"use strict";

const Runs = (() => {
  const FAR = 1e9; // from here on a run counts as lost, and ends

  // setup: {surface, condition, formula, noise, batch, seed, start, steps}.
  function gradients(setup) {
    const surface = Surfaces.ALL[setup.surface].make(setup);
    const off =
      setup.noise > 0
        ? Surfaces.batchNoise(setup.noise, setup.batch, setup.seed, setup.steps)
        : null;
    return {
      value: surface.value,
      // of step t, which is 1 for the first
      at: (x, y, t) => {
        const [gx, gy] = surface.gradient(x, y);
        return off === null ? [gx, gy] : [gx + off[t - 1][0], gy + off[t - 1][1]];
      },
    };
  }

  // Returns {points, costs, steps, lost, name, options, average, square}: points[t] is where the optimizer
  // is after t steps, and steps[t - 1] what its step t was; both end early where a run leaves all
  // bounds, or comes to where there is no cost or gradient: lost says so in words, and is null if not.
  // options are all of them, and the last two the names of its state, or null.
  function run(setup, optimizer) {
    const given = gradients(setup);
    const opt = FASTOPT.create(optimizer.name, optimizer.options);
    const x = Float64Array.from(setup.start);
    const points = [Array.from(x)];
    const costs = [given.value(x[0], x[1])];
    const steps = [];
    let lost = null;
    const ended = (what) =>
      `cannot go on after step ${points.length - 1}: ${what} at ${Numbers.point(points.at(-1), 3)}`;
    for (let t = 1; t <= setup.steps; t += 1) {
      const gradient = Float64Array.from(given.at(x[0], x[1], t));
      if (!Array.from(gradient).every(Number.isFinite)) {
        lost = ended("the cost has no finite slope");
        break;
      }
      steps.push(opt.step(x, gradient));
      points.push(Array.from(x));
      costs.push(given.value(x[0], x[1]));
      if (!(Math.abs(x[0]) < FAR && Math.abs(x[1]) < FAR)) {
        lost = `left all bounds in step ${t}: its learning rate is too large here`;
      } else if (!Number.isFinite(costs[t])) lost = ended(`the cost is ${Numbers.text(costs[t])}`);
      if (lost) break;
    }
    const { options, average, square } = opt;
    return { name: optimizer.name, points, costs, steps, lost, options, average, square };
  }

  const STAY = 50;

  // How many steps (at most `most`) until the distance from the goal is `share` of what it was at
  // first, and stays so for STAY steps more; Infinity if it does not come to that.
  function stepsToReach(setup, optimizer, goal, share, most) {
    const points = run({ ...setup, steps: most + STAY }, optimizer).points;
    const far = (p) => Math.hypot(p[0] - goal[0], p[1] - goal[1]);
    const limit = share * far(points[0]);
    let inside = 0; // how many points in a row, up to this one
    for (let t = 0; t < points.length; t += 1) {
      inside = far(points[t]) <= limit ? inside + 1 : 0;
      if (inside > STAY) return t - STAY;
    }
    return Infinity;
  }

  // The weight that each gradient has in the sum of an optimizer's steps, newest last: a single
  // gradient of 1 is given, then nothing, and the steps after it are looked at. What an average
  // makes of it is proportional to them, as long as the optimizer divides by nothing.
  function weights(optimizer, count) {
    const opt = FASTOPT.create(optimizer.name, optimizer.options);
    const x = new Float64Array(1);
    const found = [];
    for (let t = 0; t < count; t += 1) {
      found.push(-opt.step(x, Float64Array.of(t === 0 ? 1 : 0)).update[0]);
    }
    return found;
  }

  // What optimizers are called: {label: the name and what tells it from others of its class, more:
  // the learning rate and what else is not usual}. The label has the learning rate only where
  // nothing else differs, and a letter where nothing at all does. optimizers: [{name, options}].
  const WORDS = {
    eps_inside_sqrt: ["ε outside the root", "ε inside the root"],
    bias_correction: ["without correction", "with correction"],
    lr_inside: ["lr outside", "lr inside"],
    eps: "ε",
    beta: "β",
    betas: "β₁, β₂",
    lr: "lr",
  };

  const NONE = ["momentum", "dampening", "weight_decay"]; // of which 0 is none

  function inWords(option, value) {
    const words = WORDS[option] ?? option.replaceAll("_", " ");
    if (typeof value === "boolean") {
      return Array.isArray(words) ? words[Number(value)] : `${value ? "" : "no "}${words}`;
    }
    if (value === 0 && NONE.includes(option)) return `no ${words}`;
    const all = [value].flat().map((one) => (typeof one === "number" ? Numbers.plain(one) : one));
    return `${words} = ${all.map((one) => one ?? "none").join(", ")}`;
  }

  function names(optimizers) {
    const whole = optimizers.map(({ name, options }) => FASTOPT.create(name, options).options);
    const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
    return optimizers.map(({ name }, i) => {
      const others = whole.filter((_, k) => k !== i && optimizers[k].name === name);
      const usual = FASTOPT.create(name, {}).options;
      const differ = (option) => others.some((one) => !same(one[option], whole[i][option]));
      const options = Object.keys(whole[i]).filter(differ);
      const words = options.filter((option) => option !== "lr");
      const enough = others.every((one) => words.some((key) => !same(one[key], whole[i][key])));
      const named = enough ? words : options;
      const twin = others.some((one) => same(one, whole[i]));
      const more = Object.keys(whole[i]).filter(
        (key) => !named.includes(key) && (key === "lr" || !same(whole[i][key], usual[key])),
      );
      const say = (keys) => keys.map((key) => inWords(key, whole[i][key]));
      return {
        label: [name, ...say(named), ...(twin ? ["ABCD"[i]] : [])].join(", "),
        more: say(more).join(", "),
      };
    });
  }

  return { STAY, run, gradients, stepsToReach, weights, names };
})();
