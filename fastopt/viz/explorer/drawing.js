// Pictures on canvases: the surface with the paths, and the strips of numbers over the steps.
"use strict";

const Drawing = (() => {
  const DASHES = [[], [9, 5], [2, 4], [9, 4, 2, 4]];
  const RATIO = 0.6; // height of the surface over its width

  // A canvas's context, in units of CSS pixels, cleared, with the size that the page gives it.
  function prepared(canvas) {
    const { width, height } = canvas.getBoundingClientRect();
    const scale = window.devicePixelRatio || 1;
    const [w, h] = [
      Math.max(1, Math.round(width * scale)),
      Math.max(1, Math.round(height * scale)),
    ];
    if (canvas.width !== w || canvas.height !== h) {
      canvas.width = w;
      canvas.height = h;
    }
    const context = canvas.getContext("2d");
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    context.lineJoin = "round";
    context.lineCap = "round";
    return { context, width, height };
  }

  function colours() {
    const style = getComputedStyle(document.documentElement);
    const get = (name) => style.getPropertyValue(name).trim();
    return {
      low: get("--map-low"),
      high: get("--map-high"),
      line: get("--map-line"),
      ink: get("--ink"),
      faint: get("--faint"),
      paper: get("--paper"),
      rule: get("--rule"),
      band: get("--band"),
      runs: ["--run-0", "--run-1", "--run-2", "--run-3"].map(get),
    };
  }

  // Markers that differ in shape as well as in colour.
  function marker(context, number, x, y, size) {
    context.beginPath();
    if (number === 0) context.arc(x, y, size, 0, 2 * Math.PI);
    else if (number === 1) context.rect(x - 0.9 * size, y - 0.9 * size, 1.8 * size, 1.8 * size);
    else if (number === 3) {
      for (const [dx, dy] of [
        [0, -1],
        [1, 0],
        [0, 1],
        [-1, 0],
      ])
        context.lineTo(x + 1.25 * size * dx, y + 1.25 * size * dy);
      context.closePath();
    } else {
      context.moveTo(x, y - 1.25 * size);
      context.lineTo(x + 1.15 * size, y + 0.85 * size);
      context.lineTo(x - 1.15 * size, y + 0.85 * size);
      context.closePath();
    }
  }

  // From the plane to the canvas and back. view: [x, y, width] in the plane.
  function mapping(view, width, height) {
    const scale = width / view[2];
    return {
      to: (p) => [width / 2 + (p[0] - view[0]) * scale, height / 2 - (p[1] - view[1]) * scale],
      from: (p) => [view[0] + (p[0] - width / 2) / scale, view[1] - (p[1] - height / 2) / scale],
      scale,
    };
  }

  const mix = (a, b, share) => a.map((one, i) => Math.round(one + (b[i] - one) * share));
  const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

  // Heights on a grid, as a share from 0 (lowest) to 1 (highest); the logarithm is taken, so that
  // what lies deep in a valley is told apart as well as its walls.
  function heights(value, map, width, height, cell) {
    const columns = Math.ceil(width / cell) + 1;
    const rows = Math.ceil(height / cell) + 1;
    const grid = new Float64Array(columns * rows);
    for (let j = 0; j < rows; j += 1) {
      for (let i = 0; i < columns; i += 1) {
        grid[j * columns + i] = value(...map.from([i * cell, j * cell]));
      }
    }
    const sorted = Array.from(grid)
      .filter(Number.isFinite)
      .sort((a, b) => a - b);
    if (sorted.length === 0) return { grid, columns, rows };
    const least = sorted[0];
    const unit =
      sorted[Math.floor(0.03 * sorted.length)] - least || sorted[sorted.length - 1] - least || 1;
    const most = Math.log1p((sorted[Math.floor(0.995 * (sorted.length - 1))] - least) / unit) || 1;
    for (let k = 0; k < grid.length; k += 1) grid[k] = Math.log1p((grid[k] - least) / unit) / most;
    return { grid, columns, rows };
  }

  // The lines along which a grid has a value: marching squares, two ends on edges of each cell.
  function contour(context, { grid, columns, rows }, cell, level) {
    context.beginPath();
    for (let j = 0; j + 1 < rows; j += 1) {
      for (let i = 0; i + 1 < columns; i += 1) {
        const k = j * columns + i;
        const a = [grid[k], grid[k + 1], grid[k + columns + 1], grid[k + columns]];
        if (!a.every(Number.isFinite)) continue;
        const corner = [
          [i, j],
          [i + 1, j],
          [i + 1, j + 1],
          [i, j + 1],
        ];
        const ends = [];
        for (let side = 0; side < 4; side += 1) {
          const other = (side + 1) % 4;
          if (a[side] < level === a[other] < level) continue;
          const share = (level - a[side]) / (a[other] - a[side]);
          ends.push(
            [0, 1].map(
              (n) => cell * (corner[side][n] + share * (corner[other][n] - corner[side][n])),
            ),
          );
        }
        for (let n = 0; n + 1 < ends.length; n += 2) {
          context.moveTo(...ends[n]);
          context.lineTo(...ends[n + 1]);
        }
      }
    }
    context.stroke();
  }

  let kept = { key: "", picture: null }; // the ground, which changes less often than the paths

  function ground(key, value, view, width, height, scale, colour) {
    if (kept.key === key) return kept.picture;
    const picture = document.createElement("canvas");
    picture.width = Math.round(width * scale);
    picture.height = Math.round(height * scale);
    const context = picture.getContext("2d");
    context.scale(scale, scale);
    const map = mapping(view, width, height);
    const cell = 4;
    const field = heights(value, map, width, height, cell);
    const small = document.createElement("canvas");
    small.width = field.columns;
    small.height = field.rows;
    const image = new ImageData(field.columns, field.rows);
    const [low, high] = [rgb(colour.low), rgb(colour.high)];
    field.grid.forEach((share, k) => {
      const shown = Number.isFinite(share) ? Math.min(1, Math.max(0, share)) : 1;
      image.data.set([...mix(low, high, shown), Number.isFinite(share) ? 255 : 0], 4 * k);
    });
    small.getContext("2d").putImageData(image, 0, 0);
    context.imageSmoothingEnabled = true;
    // the middle of a pixel of `small` is where its height was taken
    context.drawImage(small, -cell / 2, -cell / 2, field.columns * cell, field.rows * cell);
    context.strokeStyle = colour.line;
    context.lineWidth = 1;
    for (let n = 1; n < 18; n += 1) contour(context, field, cell, n / 18);
    kept = { key, picture };
    return picture;
  }

  // Round numbers that divide a range into about `count` parts.
  function ticks(low, high, count) {
    const rough = (high - low) / count;
    const power = Math.pow(10, Math.floor(Math.log10(rough)));
    const size = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
    const found = [];
    for (let n = Math.ceil(low / size); n * size <= high; n += 1) found.push(n * size);
    return found;
  }

  function arrow(context, from, to, head) {
    const [dx, dy] = [to[0] - from[0], to[1] - from[1]];
    const length = Math.hypot(dx, dy);
    if (!(length > 1)) return;
    const [ux, uy] = [dx / length, dy / length];
    context.beginPath();
    context.moveTo(...from);
    context.lineTo(...to);
    context.stroke();
    context.setLineDash([]);
    context.beginPath();
    context.moveTo(to[0] - head * (ux + 0.55 * uy), to[1] - head * (uy - 0.55 * ux));
    context.lineTo(...to);
    context.lineTo(to[0] - head * (ux - 0.55 * uy), to[1] - head * (uy + 0.55 * ux));
    context.stroke();
  }

  // model: {key, value, view, goals, axes, runs, t, focus}
  function surface(canvas, model) {
    const { context, width, height } = prepared(canvas);
    if (width < 2) return;
    const colour = colours();
    const scale = window.devicePixelRatio || 1;
    const key = [model.key, model.view, width, height, scale, colour.low, colour.line].join("|");
    const picture = ground(key, model.value, model.view, width, height, scale, colour);
    context.drawImage(picture, 0, 0, width, height);
    const map = mapping(model.view, width, height);

    context.font = "11px system-ui, sans-serif";
    context.fillStyle = colour.ink;
    const [left, top] = map.from([0, 0]);
    const [rightmost, bottom] = map.from([width, height]);
    // on the colour of the paper, or the lines of the ground would run through them
    const write = (text, x, y) => {
      context.strokeStyle = colour.low;
      context.lineWidth = 4;
      context.strokeText(text, x, y);
      context.fillText(text, x, y);
    };
    context.textAlign = "center";
    for (const x of ticks(left, rightmost, 5)) {
      const at = map.to([x, 0])[0];
      if (at < 44 || at > width - 44) continue;
      context.fillRect(at, height - 4, 1, 4);
      write(Numbers.text(x, 3), at, height - 8);
    }
    context.textAlign = "left";
    for (const y of ticks(bottom, top, 4)) {
      const at = map.to([0, y])[1];
      if (at < 14 || at > height - 30) continue;
      context.fillRect(0, at, 4, 1);
      write(Numbers.text(y, 3), 8, at + 4);
    }
    if (width > 440) {
      write(model.axes[1], 8, 14);
      context.textAlign = "right";
      write(model.axes[0], width - 8, height - 22);
    }
    context.strokeStyle = colour.ink;
    context.lineWidth = 1.5;
    for (const goal of model.goals) {
      const [x, y] = map.to(goal);
      context.beginPath();
      context.moveTo(x - 6, y);
      context.lineTo(x + 6, y);
      context.moveTo(x, y - 6);
      context.lineTo(x, y + 6);
      context.stroke();
    }

    const order = model.runs.map((_, i) => i).filter((i) => i !== model.focus);
    for (const i of [...order, model.focus]) {
      const points = model.runs[i].points;
      const now = Math.min(model.t, points.length - 1);
      const spots = points.map(map.to);
      const line = (from, to) => {
        context.beginPath();
        for (let t = from; t <= to; t += 1) context.lineTo(...spots[t]);
        context.stroke();
      };
      context.strokeStyle = colour.runs[i];
      context.fillStyle = colour.runs[i];
      context.setLineDash(DASHES[i]);
      context.globalAlpha = 0.55;
      context.lineWidth = 1.5;
      line(now, spots.length - 1);
      // light (or dark) along both sides, so that it stands out from the ground
      context.globalAlpha = 0.75;
      context.setLineDash([]);
      context.strokeStyle = colour.paper;
      context.lineWidth = 5;
      line(0, now);
      context.globalAlpha = 1;
      context.setLineDash(DASHES[i]);
      context.strokeStyle = colour.runs[i];
      context.lineWidth = i === model.focus ? 2.5 : 2;
      line(0, now);
      context.setLineDash([]);
      let last = null;
      for (let t = 0; t < now; t += 1) {
        // as many of the points before as can be told apart
        if (last && Math.hypot(spots[t][0] - last[0], spots[t][1] - last[1]) < 7) continue;
        last = spots[t];
        marker(context, i, ...spots[t], 2.4);
        context.fill();
      }
      marker(context, i, ...spots[now], 6);
      context.fill();
      context.lineWidth = 2;
      context.strokeStyle = colour.paper;
      context.stroke();
    }

    // The cause and the effect of the focused optimizer's step: downhill, and where it went.
    const run = model.runs[model.focus];
    const step = run.steps[Math.min(model.t, run.steps.length) - 1];
    if (step) {
      const from = map.to(Array.from(step.before));
      const length = Math.hypot(...step.gradient);
      const long = Math.min(52, 0.09 * width);
      const head = Math.min(8, 0.02 * width);
      if (length > 0) {
        const downhill = [
          from[0] - (long * step.gradient[0]) / length,
          from[1] + (long * step.gradient[1]) / length,
        ];
        context.strokeStyle = colour.paper;
        context.lineWidth = 4;
        arrow(context, from, downhill, head);
        context.strokeStyle = colour.ink;
        context.lineWidth = 1.75;
        context.setLineDash([3, 4]);
        arrow(context, from, downhill, head);
      }
      const size = Math.hypot(...step.update);
      if (size > 0) {
        // as long as it is, but never so short that its direction cannot be seen
        const stretch = Math.max(1, (0.5 * long) / (size * map.scale));
        const to = map.to([0, 1].map((n) => step.before[n] + stretch * step.update[n]));
        context.setLineDash([]);
        context.strokeStyle = colour.paper;
        context.lineWidth = 5;
        arrow(context, from, to, head + 1);
        context.strokeStyle = colour.runs[model.focus];
        context.lineWidth = 3;
        arrow(context, from, to, head + 1);
      }
    }
  }

  // One strip. model: {lines: [[value, ...] or null per optimizer], steps, t, focus, zero,
  // band: how many of the newest steps are shaded, borders: steps at which an epoch ends,
  // lost: whether each run left all bounds, robust: whether far values may be cut off}
  function strip(canvas, model) {
    const { context, width, height } = prepared(canvas);
    if (width < 2) return;
    const colour = colours();
    const inner = { left: 6, right: width - 8, top: 6, bottom: height - 6 };
    // A run that is lost would flatten all others: it is cut off, unless there is nothing else.
    const alone = model.lost.every((lost, i) => lost || !model.lines[i]);
    const fits = (one, i) =>
      Number.isFinite(one) && (!model.lost[i] || (alone && Math.abs(one) < 1e4));
    const values = model.lines.flatMap((line, i) => (line ?? []).filter((one) => fits(one, i)));
    if (model.robust) {
      // without the few that are far from all others
      values.sort((a, b) => a - b);
      const cut = Math.ceil(0.03 * values.length);
      values.splice(values.length - cut, cut);
      values.splice(0, cut);
    }
    let low = values.reduce((a, b) => Math.min(a, b), 0);
    let high = values.reduce((a, b) => Math.max(a, b), 0);
    if (low === high) high = 1;
    const at = (t) =>
      inner.left + ((t - 1) / Math.max(1, model.steps - 1)) * (inner.right - inner.left);
    const up = (value) =>
      inner.bottom - ((value - low) / (high - low)) * (inner.bottom - inner.top);

    if (model.band > 0 && model.t > 0) {
      context.fillStyle = colour.band;
      const from = at(Math.max(1, model.t - model.band + 1)) - 2;
      context.fillRect(from, 0, at(model.t) + 2 - from, height);
    }
    context.strokeStyle = colour.faint;
    context.lineWidth = 1;
    context.setLineDash([1, 4]);
    for (const t of model.borders) {
      context.beginPath();
      context.moveTo(at(t + 0.5), 0);
      context.lineTo(at(t + 0.5), height);
      context.stroke();
    }
    context.setLineDash([]);
    context.beginPath();
    context.moveTo(0, up(0));
    context.lineTo(width, up(0));
    context.stroke();

    const order = model.lines.map((_, i) => i).filter((i) => i !== model.focus);
    context.save();
    context.beginPath();
    context.rect(0, 0, width, height);
    context.clip();
    for (const i of [...order, model.focus]) {
      const line = model.lines[i];
      if (!line) continue;
      context.strokeStyle = colour.runs[i];
      context.lineWidth = i === model.focus ? 2 : 1.5;
      context.setLineDash(DASHES[i]);
      context.beginPath();
      line.forEach((value, n) => Number.isFinite(value) && context.lineTo(at(n + 1), up(value)));
      context.stroke();
    }
    context.setLineDash([]);
    if (model.t > 0) {
      context.strokeStyle = colour.ink;
      context.lineWidth = 1;
      context.beginPath();
      context.moveTo(at(model.t), 0);
      context.lineTo(at(model.t), height);
      context.stroke();
      for (const i of [...order, model.focus]) {
        const value = model.lines[i] ? model.lines[i][model.t - 1] : undefined;
        if (!Number.isFinite(value)) continue;
        context.fillStyle = colour.runs[i];
        marker(context, i, at(model.t), up(value), i === model.focus ? 4.5 : 3.5);
        context.fill();
        context.strokeStyle = colour.paper;
        context.lineWidth = 1.5;
        context.stroke();
      }
    }
    context.restore();
    return { low, high };
  }

  // The step that a place on a strip stands for.
  function stepAt(canvas, clientX, steps) {
    const box = canvas.getBoundingClientRect();
    const share = (clientX - box.left - 6) / Math.max(1, box.width - 14);
    return Math.min(steps, Math.max(1, Math.round(1 + share * (steps - 1))));
  }

  // The sample of a line that names an optimizer in the page: its colour, dash and marker.
  function sample(canvas, number) {
    const { context, width, height } = prepared(canvas);
    const colour = colours().runs[number];
    context.strokeStyle = colour;
    context.fillStyle = colour;
    context.lineWidth = 2.5;
    context.setLineDash(DASHES[number]);
    context.beginPath();
    context.moveTo(1, height / 2);
    context.lineTo(width - 1, height / 2);
    context.stroke();
    context.setLineDash([]);
    marker(context, number, width / 2, height / 2, 5);
    context.fill();
  }

  return { RATIO, mapping, surface, strip, stepAt, sample };
})();
