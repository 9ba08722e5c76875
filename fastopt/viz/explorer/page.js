// The page: keeps the state, runs the optimizers anew when it changes, and shows what came of it.
"use strict";

const Explorer = (() => {
  const { element } = Controls;
  const $ = (id) => document.getElementById(id);

  let state = State.DEFAULT;
  let runs = [];
  let names = []; // what each is called
  let ran = null; // the state that `runs` are of
  let startFields = []; // the two fields that the start stands in
  let playing = null; // the timer while it plays

  // What the parts of the page are shown from.
  const scene = () => ({ state, runs, label, axes: Surfaces.ALL[state.surface].axes });

  const label = (i) => names[i].label;

  // ----------------------------------------------------------------------------------------------
  // Changes.

  const CAUSES = [
    "surface",
    "condition",
    "formula",
    "start",
    "steps",
    "noise",
    "batch",
    "seed",
    "optimizers",
  ];

  function calculate() {
    if (ran !== null && CAUSES.every((key) => State.same(ran[key], state[key]))) return;
    runs = state.optimizers.map((one) => Runs.run(state, one));
    names = Runs.names(state.optimizers);
    ran = state;
  }

  const sentence = (mistake) => mistake.message.replace(/[^.]$/, "$&.");

  // Takes over a part of a state. Returns what is wrong with it, in words, and then changes nothing.
  function set(patch, { fields = true } = {}) {
    let next;
    try {
      next = State.completed(patch, state);
    } catch (wrong) {
      return sentence(wrong);
    }
    const before = state;
    state = next;
    calculate();
    if (before.theme !== state.theme) applyTheme();
    const otherNames = !State.same(
      before.optimizers.map((o) => o.name),
      state.optimizers.map((o) => o.name),
    );
    if (fields || otherNames) {
      buildFields();
      buildLegend();
    }
    rename();
    show();
    return undefined;
  }

  function setStep(t) {
    state = { ...state, t: Math.min(state.steps, Math.max(0, t)) };
    show();
  }

  function pause() {
    if (playing === null) return;
    clearInterval(playing);
    playing = null;
    $("play").classList.remove("playing");
    $("play").setAttribute("aria-label", "Play");
    $("status").setAttribute("aria-live", "polite");
    show();
  }

  function play() {
    if (playing !== null) return pause();
    if (state.t >= state.steps) setStep(0);
    $("play").classList.add("playing");
    $("play").setAttribute("aria-label", "Pause");
    $("status").setAttribute("aria-live", "off"); // or each step would be read out
    playing = setInterval(
      () => {
        setStep(state.t + 1);
        if (state.t >= state.steps) pause();
      },
      state.steps > 150 ? 60 : 140,
    );
    return undefined;
  }

  // ----------------------------------------------------------------------------------------------
  // The picture.

  let view = [0, 0, 10];

  function show() {
    showSurface();
    $("bandnote").textContent = Strips.show($("grid"), scene());
    showPlayer();
    $("formulatitle").textContent = `This step of ${label(state.focus)}, in numbers`;
    Panel.showLines($("lines"), scene());
    showStatus();
    showLook();
    if ($("tablebox").open && playing === null) Panel.showTable($("table"), scene());
    keepLink();
  }

  // What is seen of the plane: so much that the start is in it; nearer, it is the lowest point.
  function viewOf({ surface, start, zoom }) {
    const {
      view: [x, y, width],
      goals,
    } = Surfaces.ALL[surface];
    if (zoom > 1) {
      const { lost, points } = runs[state.focus]; // where no lowest point is known: its end
      return [...(goals[0] ?? (lost ? [x, y] : points.at(-1))), width / zoom];
    }
    const [dx, dy] = [Math.abs(start[0] - x), Math.abs(start[1] - y)];
    return [x, y, Math.max(width, 2.2 * dx, (2.2 * dy) / Drawing.RATIO) / zoom];
  }

  function showSurface() {
    view = viewOf(state);
    const { value } = Runs.gradients(state);
    const key = [state.surface, state.condition, state.formula].join("|");
    const goals = Surfaces.ALL[state.surface].goals;
    Drawing.surface($("surface"), {
      key,
      value,
      view,
      goals,
      axes: scene().axes,
      runs,
      t: state.t,
      focus: state.focus,
    });
    const name = Surfaces.ALL[state.surface].title;
    $("surface").setAttribute(
      "aria-label",
      `${name}, seen from above, with the paths of ${state.optimizers.map((_, i) => label(i)).join(", ")}`,
    );
    placeStart();
  }

  // A button that does nothing more keeps the focus, which a disabled one would lose.
  const atEnd = (id, isAtEnd) => $(id).setAttribute("aria-disabled", String(isAtEnd));

  function placeStart() {
    const { width, height } = $("surface").getBoundingClientRect();
    const [x, y] = Drawing.mapping(view, width, height).to(state.start);
    const inside = (at, most) => Math.min(most - 12, Math.max(12, at));
    $("start").style.left = `${inside(x, width)}px`;
    $("start").style.top = `${inside(y, height)}px`;
    $("start").hidden = x < -12 || x > width + 12 || y < -12 || y > height + 12;
    $("start").classList.toggle("aside", y < 30 || x < 60);
    $("start").setAttribute(
      "aria-label",
      `Start of the runs, at ${Numbers.point(state.start, 3)}: drag it, move it with the arrow keys, or type it in the settings`,
    );
    atEnd("out", state.zoom <= State.ZOOMS[0]);
    atEnd("in", state.zoom >= State.ZOOMS.at(-1));
  }

  function showPlayer() {
    $("t").max = state.steps;
    $("t").value = state.t;
    $("t").setAttribute("aria-valuetext", `step ${state.t} of ${state.steps}`);
    $("stepname").textContent = `Step ${state.t}`;
    $("ofsteps").textContent = `of ${state.steps}`;
    atEnd("first", state.t === 0);
    atEnd("back", state.t === 0);
    atEnd("forward", state.t === state.steps);
    document.querySelector(".sign.went").style.borderTopColor = `var(--run-${state.focus})`;
  }

  const COSTS = (run, t) => Numbers.text(run.costs[Math.min(t, run.costs.length - 1)]);

  function showStatus() {
    if (playing !== null && state.t % 5 !== 0) return;
    const said = runs.map((run, i) => {
      const last = run.points.length - 1;
      if (state.t > last) return `${label(i)} ${run.lost}`;
      return `${label(i)} is at ${Numbers.point(run.points[state.t], 3)}, cost ${COSTS(run, state.t)}`;
    });
    const step = runs[state.focus].steps[state.t - 1];
    const made = step
      ? ` ${label(state.focus)}: gradient ${Numbers.point(step.gradient, 3)}, step ${Numbers.point(step.update, 3)}.`
      : "";
    const when = state.t === 0 ? "At the start" : `After step ${state.t}`;
    $("status").textContent = `${when}: ${said.join("; ")}.${made}`;
  }

  // ----------------------------------------------------------------------------------------------
  // Settings.

  function buildLegend() {
    const options = state.optimizers.map((one, i) => {
      const input = element("input", { type: "radio", name: "focus", value: i });
      input.checked = i === state.focus;
      input.addEventListener("change", () => set({ focus: i }, { fields: false }));
      return element(
        "label",
        {},
        input,
        element("canvas", { class: "sample", "data-run": i, "aria-hidden": "true" }),
        element("span", { "data-label": i }),
        element("small", {}),
      );
    });
    $("legend").replaceChildren(...options);
    drawSamples();
  }

  // Writes the optimizers' names where they stand, which change with their options.
  function rename() {
    for (const one of document.querySelectorAll("[data-label]")) {
      one.textContent = label(Number(one.dataset.label));
    }
    document.querySelectorAll("#legend small").forEach((small, i) => {
      small.textContent = names[i].more;
    });
  }

  function drawSamples() {
    for (const canvas of document.querySelectorAll("canvas.sample"))
      Drawing.sample(canvas, Number(canvas.dataset.run));
  }

  function buildFields() {
    // What is being used keeps the focus: fields are found again by their place.
    const fields = () => Array.from($("cards").querySelectorAll("input, select, button"));
    const at = fields().indexOf(document.activeElement);
    const page = { scene, set };
    const ground = Settings.groundCard(page);
    startFields = ground.startFields;
    const cards = state.optimizers.map((_, i) => Settings.optimizerCard(page, i));
    cards.unshift(ground.card);
    if (state.optimizers.length < State.MOST_OPTIMIZERS) {
      const add = () =>
        set({
          optimizers: [...state.optimizers, { name: "RMSprop", options: { lr: 0.1 } }],
          focus: state.optimizers.length,
        });
      cards.push(
        element("button", { type: "button", class: "add", onclick: add }, "Add an optimizer"),
      );
    }
    $("cards").replaceChildren(...cards);
    $("theme").value = state.theme;
    drawSamples();
    if (at >= 0) fields()[Math.min(at, fields().length - 1)].focus();
  }

  // ----------------------------------------------------------------------------------------------
  // The start, dragged or moved by keys.

  function moveStart(start) {
    const rounded = start.map((one) => Number(one.toPrecision(4)));
    if (set({ start: rounded }, { fields: false })) return;
    startFields.forEach((one, n) => (one.field.value = String(state.start[n])));
  }

  function listenToStart() {
    const handle = $("start");
    handle.addEventListener("pointerdown", (event) => {
      pause();
      handle.setPointerCapture(event.pointerId);
    });
    handle.addEventListener("pointermove", (event) => {
      if (!event.buttons) return;
      const box = $("surface").getBoundingClientRect();
      const at = [
        Math.min(box.right, Math.max(box.left, event.clientX)) - box.left,
        Math.min(box.bottom, Math.max(box.top, event.clientY)) - box.top,
      ];
      moveStart(Drawing.mapping(view, box.width, box.height).from(at));
    });
    handle.addEventListener("keydown", (event) => {
      const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
      const way = ways[event.key];
      if (!way) return;
      event.preventDefault();
      event.stopPropagation();
      const size = (view[2] / 100) * (event.shiftKey ? 5 : 1);
      moveStart([0, 1].map((n) => state.start[n] + size * way[n]));
    });
  }

  // ----------------------------------------------------------------------------------------------
  // Questions.

  // What to look at, as long as what is shown is what a question or the page itself begins with.
  function showLook() {
    const isShown = (shown) => {
      const whole = State.completed(shown, state);
      const all = (one) => ({
        ...one,
        optimizers: one.optimizers.map(({ name, options }) => [
          name,
          FASTOPT.create(name, options).options,
        ]),
      });
      const [a, b] = [all(whole), all(state)];
      return CAUSES.every((key) => State.same(a[key], b[key]));
    };
    const question = Questions.ALL.find((one) => isShown(one.show));
    const text = question?.look ?? (isShown(State.DEFAULT) ? State.LOOK : "");
    $("look").hidden = text === "";
    $("look").firstElementChild.textContent = text;
    $("toquestion").hidden = !question;
    asking = question ?? null;
  }

  let asking = null; // the question whose picture is shown

  function backToQuestion() {
    const box = $(`question-${asking.id}`);
    box.open = true;
    box.querySelector("summary").focus({ preventScroll: true });
    box.scrollIntoView({ block: "start" });
  }

  function showMe(question) {
    pause();
    set({ ...question.show, ask: question.id });
    $($("look").hidden ? "stage" : "look").focus({ preventScroll: true });
    $("stage").scrollIntoView({ block: "nearest" });
  }

  function opened(question, isOpen) {
    if (isOpen) state = { ...state, ask: question.id };
    else if (state.ask === question.id) state = { ...state, ask: "" };
    keepLink();
  }

  // ----------------------------------------------------------------------------------------------
  // Link, colours, keys.

  let own = null; // what the link had when this page last read or wrote it
  let writes = null; // the timer until it is written: browsers refuse it many times a second

  function keepLink() {
    if (writes !== null || playing !== null) return;
    writes = setTimeout(() => {
      writes = null;
      if (location.hash !== own) return; // another one has been entered, and will be read
      own = `#${State.toLink(state)}`;
      history.replaceState(null, "", own);
    }, 300);
  }

  function notice(text) {
    $("notice").textContent = text ?? "";
    $("notice").hidden = !text;
  }

  function fromLink() {
    if (location.hash === own) return;
    own = location.hash;
    pause();
    let wrong;
    let given;
    try {
      // A link says all that is not the default, whatever the file begins with.
      given = location.hash.length > 1 ? State.fromLink(location.hash) : initial();
    } catch (mistake) {
      wrong = sentence(mistake);
    }
    state = State.DEFAULT;
    wrong ??= set(given);
    if (wrong && set(initial())) set({});
    notice(wrong && `This cannot be shown: ${wrong} Here is the usual beginning instead.`);
    if (state.ask) $(`question-${state.ask}`).open = true;
  }

  const initial = () => JSON.parse($("initial").textContent);

  const systemDark = matchMedia("(prefers-color-scheme: dark)");

  function applyTheme() {
    const dark = state.theme === "dark" || (state.theme === "auto" && systemDark.matches);
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    drawSamples();
  }

  function zoomBy(steps) {
    const at = State.ZOOMS.indexOf(state.zoom) + steps;
    set(
      { zoom: State.ZOOMS[Math.min(State.ZOOMS.length - 1, Math.max(0, at))] },
      { fields: false },
    );
  }

  function listen() {
    $("in").addEventListener("click", () => zoomBy(1));
    $("out").addEventListener("click", () => zoomBy(-1));
    $("first").addEventListener("click", () => (pause(), setStep(0)));
    $("back").addEventListener("click", () => (pause(), setStep(state.t - 1)));
    $("forward").addEventListener("click", () => (pause(), setStep(state.t + 1)));
    $("play").addEventListener("click", play);
    $("toquestion").addEventListener("click", backToQuestion);
    $("t").addEventListener("input", () => (pause(), setStep(Number($("t").value))));
    $("theme").addEventListener("change", () =>
      set({ theme: $("theme").value }, { fields: false }),
    );
    $("tablebox").addEventListener("toggle", () => show());
    $("copy").addEventListener("click", async () => {
      const link = `${location.href.split("#")[0]}#${State.toLink(state)}`;
      try {
        await navigator.clipboard.writeText(link);
        $("copy").textContent = "Copied";
        setTimeout(() => ($("copy").textContent = "Copy link"), 2000);
      } catch {
        notice(
          `The browser does not let this page copy. The link is in the address bar, and here: ${link}`,
        );
      }
    });
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      // What a control does with a key itself stays its own.
      if (event.target.closest?.("input, select, textarea, summary, .scroll")) return;
      const onButton = event.target.closest?.("button, a");
      const acts = {
        ArrowLeft: () => (pause(), setStep(state.t - 1)),
        ArrowRight: () => (pause(), setStep(state.t + 1)),
        Home: () => (pause(), setStep(0)),
        End: () => (pause(), setStep(state.steps)),
        " ": play,
      };
      if (!Object.hasOwn(acts, event.key) || (event.key === " " && onButton)) return;
      event.preventDefault();
      acts[event.key]();
    });
    window.addEventListener("hashchange", fromLink);
    systemDark.addEventListener("change", () => (applyTheme(), show()));
    new ResizeObserver(() => (drawSamples(), show())).observe($("frame"));
    listenToStart();
  }

  function begin() {
    Strips.build(
      $("grid"),
      () => state.steps,
      (t) => (pause(), setStep(t)),
    );
    $("asked").append(...Questions.ALL.map((one) => Asked.box(one, { showMe, opened })));
    fromLink();
    applyTheme();
    show();
    listen();
  }

  begin();

  return {
    state: () => state,
    runs: () => runs,
    set,
    setStep,
    pause,
    isPlaying: () => playing !== null,
  };
})();
