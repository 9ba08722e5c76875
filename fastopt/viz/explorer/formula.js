// Formulas as people write them: parsed, worked out, and differentiated. Nothing is ever evaluated
// as JavaScript. A value is a number, or a "dual" [value, d/dx, d/dy] that carries its derivatives
// along (forward mode): each operation below says how all three come about.
"use strict";

const Formula = (() => {
  class Mistake extends Error {}

  const MOST = 1000;

  const CONSTANTS = { pi: Math.PI, e: Math.E };

  // For each function: its value, and its derivative given the argument and the value.
  const FUNCTIONS = {
    sin: [Math.sin, (a) => Math.cos(a)],
    cos: [Math.cos, (a) => -Math.sin(a)],
    tan: [Math.tan, (a, value) => 1 + value * value],
    atan: [Math.atan, (a) => 1 / (1 + a * a)],
    sinh: [Math.sinh, (a) => Math.cosh(a)],
    cosh: [Math.cosh, (a) => Math.sinh(a)],
    tanh: [Math.tanh, (a, value) => 1 - value * value],
    exp: [Math.exp, (a, value) => value],
    log: [Math.log, (a) => 1 / a],
    sqrt: [Math.sqrt, (a, value) => 1 / (2 * value)],
    abs: [Math.abs, (a) => Math.sign(a)],
  };

  // Those that the rules of optimizers need besides, of which no derivative is taken.
  const VALUES = {
    max: Math.max,
    min: Math.min,
    sign: Math.sign,
    clip: (a, low, high) => Math.min(Math.max(a, low), high),
    atan2: Math.atan2,
    cbrt: Math.cbrt,
  };
  for (const [name, [of]] of Object.entries(FUNCTIONS)) VALUES[name] = of;

  const NUMBER = String.raw`(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?`;
  const reader = (name) =>
    new RegExp(String.raw`\s*(?:(${NUMBER})|(${name})|(\*\*|[-+*/^(),−·×÷]))`, "y");
  const TOKEN = reader(String.raw`[A-Za-z_]\w*`);
  // The names in rules may end in [0], in ', and in (t+1) where that is an index: mu_(t+1).
  const RULE_TOKEN = reader(String.raw`[A-Za-z]\w*(?:(?<=_)\(t[+-]1\)|\[\d\]|')?`);

  // Signs that texts have from elsewhere, this page among them.
  const SIGNS = { "**": "^", "−": "-", "·": "*", "×": "*", "÷": "/" };
  const HINTS = {
    "=": " Write only what stands to the right of the = sign.",
    "²": " A power is written x^2.",
    "³": " A power is written x^3.",
    "|": " |x| is written abs(x).",
    "√": " A root is written sqrt(x).",
  };

  function tokens(text, pattern) {
    const found = [];
    let at = 0;
    while (text.slice(at).trim() !== "") {
      pattern.lastIndex = at;
      const match = pattern.exec(text);
      if (match === null) {
        const rest = text.slice(at).trimStart();
        const [sign] = rest; // all of one that is two in JavaScript
        const hint = HINTS[sign] ?? "";
        throw new Mistake(
          `I cannot read “${sign}” at place ${text.length - rest.length + 1}.` +
            ` A formula has numbers, x, y, + - * / ^ and brackets.${hint}`,
        );
      }
      at = pattern.lastIndex;
      const [whole, number, name, sign] = match;
      const start = at - whole.trimStart().length;
      const kind = number !== undefined ? "number" : name !== undefined ? "name" : "sign";
      found.push({ kind, text: SIGNS[sign] ?? whole.trimStart(), start });
    }
    return found;
  }

  // A tree of {kind, ...}; variables are the names that may stand in it.
  function parse(text, variables = ["x", "y"], functions = Object.keys(FUNCTIONS), token = TOKEN) {
    if (text.trim() === "")
      throw new Mistake("The formula is empty. Write one, such as x^2 + 10*y^2.");
    if (text.length > MOST)
      throw new Mistake(`The formula is longer than ${MOST} signs. Make it shorter.`);
    const list = tokens(text, token);
    let next = 0;

    const peek = (sign) =>
      next < list.length && list[next].kind === "sign" && list[next].text === sign;
    const take = (sign) => peek(sign) && (next += 1) > 0;

    function expected(what) {
      if (next >= list.length) return new Mistake(`The formula ends where ${what} should follow.`);
      const token = list[next];
      return new Mistake(
        `At place ${token.start + 1} stands “${token.text}” where ${what} should be.`,
      );
    }

    function sum() {
      let left = product();
      for (;;) {
        if (take("+")) left = { kind: "+", left, right: product() };
        else if (take("-")) left = { kind: "-", left, right: product() };
        else return left;
      }
    }

    function product() {
      let left = signed();
      for (;;) {
        if (take("*")) left = { kind: "*", left, right: signed() };
        else if (take("/")) left = { kind: "/", left, right: signed() };
        else return left;
      }
    }

    function signed() {
      if (take("-")) return { kind: "minus", of: signed() };
      if (take("+")) return signed();
      return power();
    }

    function power() {
      const left = atom();
      if (take("^")) return { kind: "^", left, right: signed() }; // 2^-x, and 2^3^2 is 2^(3^2)
      return left;
    }

    function atom() {
      if (next >= list.length) throw expected("a number, x, y or a bracket");
      const token = list[next];
      if (token.kind === "number") {
        next += 1;
        return { kind: "number", value: Number(token.text) };
      }
      if (token.kind === "name") {
        next += 1;
        if (functions.includes(token.text)) {
          if (!take("(")) {
            throw new Mistake(`After “${token.text}” a bracket has to follow: ${token.text}(x).`);
          }
          const given = [sum()];
          while (!Object.hasOwn(FUNCTIONS, token.text) && take(",")) given.push(sum());
          if (!take(")")) throw expected("a closing bracket");
          return { kind: "call", name: token.text, given };
        }
        if (variables.includes(token.text)) return { kind: "variable", name: token.text };
        if (Object.hasOwn(CONSTANTS, token.text)) {
          return { kind: "number", value: CONSTANTS[token.text] };
        }
        throw new Mistake(
          `“${token.text}” is not known here. There are ${variables.join(", ")}, the numbers pi` +
            ` and e, and the functions ${functions.join(", ")}; a product needs its sign: 2*x*y.`,
        );
      }
      if (take("(")) {
        const inside = sum();
        if (!take(")")) throw expected("a closing bracket");
        return inside;
      }
      throw expected("a number, x, y or a bracket");
    }

    const tree = sum();
    if (next < list.length) {
      const token = list[next];
      if (token.text === ")") {
        throw new Mistake(`The bracket that closes at place ${token.start + 1} was never opened.`);
      }
      if (token.text === ",") {
        throw new Mistake(
          `At place ${token.start + 1} stands a comma; decimals take a point: 0.5.`,
        );
      }
      throw new Mistake(
        `Before “${token.text}” at place ${token.start + 1} a sign is missing; a product is` +
          ` written with *, as in 2*x.`,
      );
    }
    return tree;
  }

  // The tree of a formula in an optimizer's rule, in which |a| stands for abs(a).
  const parseRule = (text, variables) =>
    parse(text.replace(/\|([^|]+)\|/g, "abs($1)"), variables, Object.keys(VALUES), RULE_TOKEN);

  // The variables of a tree.
  function names(tree) {
    if (tree.kind === "variable") return [tree.name];
    const parts = [tree.left, tree.right, tree.of, ...(tree.given ?? [])];
    return [...new Set(parts.filter(Boolean).flatMap(names))];
  }

  // The number that a tree comes to for the given values of its variables.
  function value(tree, values) {
    switch (tree.kind) {
      case "number":
        return tree.value;
      case "variable":
        return values[tree.name];
      case "minus":
        return -value(tree.of, values);
      case "call":
        return VALUES[tree.name](...tree.given.map((one) => value(one, values)));
      default: {
        const a = value(tree.left, values);
        const b = value(tree.right, values);
        if (tree.kind === "+") return a + b;
        if (tree.kind === "-") return a - b;
        if (tree.kind === "*") return a * b;
        if (tree.kind === "/") return a / b;
        return Math.pow(a, b);
      }
    }
  }

  // 0 times anything is 0 here: what does not depend on x has no slope along x.
  const times = (factor, slope) => (slope === 0 ? 0 : factor * slope);
  const along = (a, factor) => [times(factor, a[1]), times(factor, a[2])];

  // [value, d/dx, d/dy] of a tree at a point.
  function dual(tree, x, y) {
    switch (tree.kind) {
      case "number":
        return [tree.value, 0, 0];
      case "variable":
        return tree.name === "x" ? [x, 1, 0] : [y, 0, 1];
      case "minus":
        return dual(tree.of, x, y).map((one) => -one);
      case "call": {
        const a = dual(tree.given[0], x, y);
        const [of, slope] = FUNCTIONS[tree.name];
        const result = of(a[0]);
        return [result, ...along(a, slope(a[0], result))];
      }
      default: {
        const a = dual(tree.left, x, y);
        const b = dual(tree.right, x, y);
        if (tree.kind === "+") return [a[0] + b[0], a[1] + b[1], a[2] + b[2]];
        if (tree.kind === "-") return [a[0] - b[0], a[1] - b[1], a[2] - b[2]];
        let result;
        let byLeft; // how the result changes with a, and with b
        let byRight;
        if (tree.kind === "*") {
          result = a[0] * b[0];
          [byLeft, byRight] = [b[0], a[0]];
        } else if (tree.kind === "/") {
          result = a[0] / b[0];
          [byLeft, byRight] = [1 / b[0], -result / b[0]];
        } else {
          result = Math.pow(a[0], b[0]);
          byLeft = b[0] === 0 ? 0 : b[0] * Math.pow(a[0], b[0] - 1);
          byRight = result === 0 ? 0 : result * Math.log(a[0]);
        }
        const left = along(a, byLeft);
        const right = along(b, byRight);
        return [result, left[0] + right[0], left[1] + right[1]];
      }
    }
  }

  // {value(x, y), gradient(x, y)} of a text in x and y.
  function surface(text) {
    const tree = parse(text);
    return {
      value: (x, y) => value(tree, { x, y }),
      gradient: (x, y) => dual(tree, x, y).slice(1),
    };
  }

  return {
    Mistake,
    FUNCTIONS: Object.keys(FUNCTIONS),
    parse,
    parseRule,
    names,
    value,
    surface,
  };
})();
