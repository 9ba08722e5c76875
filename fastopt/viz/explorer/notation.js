// How a formula's tree is written, with names or with the numbers of a step in their places: pieces
// {text, said, kind, raised} in the order in which they stand. `said` is for those who hear them,
// `kind` "number" where one stands for a name, and what is raised is an exponent.
"use strict";

const Notation = (() => {
  // What binds at least as strongly as its place asks for needs no brackets.
  const SUM = 1;
  const PRODUCT = 2;
  const FACTOR = 3; // right of * and /
  const BASE = 4; // under an exponent

  const SIGNS = {
    "+": [" + ", " plus ", SUM],
    "-": [" − ", " minus ", SUM],
    "*": [" · ", " times ", PRODUCT],
    "/": [" / ", " over ", PRODUCT],
  };

  const CALLED = {
    sqrt: ["√(", " the square root of, open bracket, ", ")", ", close bracket, "],
    cbrt: ["∛(", " the cube root of, open bracket, ", ")", ", close bracket, "],
    abs: ["|", " the absolute value of, bar, ", "|", ", bar, "],
  };

  const RAISED = "⁻⁰¹²³⁴⁵⁶⁷⁸⁹";

  const plain = (text, said = text) => ({ text, said, kind: "plain", raised: false });

  const saidNumber = (text) =>
    text
      .replace("·10", " times 10 to the power ")
      .replace(/[⁻⁰-⁹¹²³]/g, (sign) => "-0123456789"[RAISED.indexOf(sign)])
      .replace(/[−-]/g, "minus ");

  const bracketed = (pieces) => [
    plain("(", " open bracket, "),
    ...pieces,
    plain(")", ", close bracket, "),
  ];

  // level: how strongly what stands around it binds; first: nothing stands to the left of it.
  function written(tree, texts, level = 0, first = true) {
    switch (tree.kind) {
      case "number":
        return [plain(String(tree.value))];
      case "variable": {
        if (texts === null) return [plain(tree.name)];
        const text = texts[tree.name];
        const piece = { text, said: saidNumber(text), kind: "number", raised: false };
        const negative = text.startsWith("−") && !(first && level <= PRODUCT);
        const powers = text.includes("·") && level >= FACTOR;
        return negative || powers ? bracketed([piece]) : [piece];
      }
      case "minus": {
        const inside = [plain("−", " minus "), ...written(tree.of, texts, FACTOR, false)];
        return first && level <= PRODUCT ? inside : bracketed(inside);
      }
      case "call": {
        const [open, saidOpen, close, saidClose] = CALLED[tree.name] ?? [
          `${tree.name}(`,
          ` ${tree.name} of, open bracket, `,
          ")",
          ", close bracket, ",
        ];
        const given = tree.given.flatMap((one, k) => [
          ...(k ? [plain(", ", ", comma, ")] : []),
          ...written(one, texts),
        ]);
        return [plain(open, saidOpen), ...given, plain(close, saidClose)];
      }
      case "^": {
        const above = written(tree.right, texts).map((one) => ({ ...one, raised: true }));
        return [...written(tree.left, texts, BASE, false), ...above];
      }
      default: {
        const [sign, said, own] = SIGNS[tree.kind];
        const wrap = level > own;
        const inside = [
          ...written(tree.left, texts, own, wrap || first),
          plain(sign, said),
          ...written(tree.right, texts, own + 1, false),
        ];
        return wrap ? bracketed(inside) : inside;
      }
    }
  }

  // What is said of pieces, in one text.
  function said(pieces) {
    let text = "";
    pieces.forEach((one, k) => {
      const begins = one.raised && !pieces[k - 1]?.raised;
      const ends = one.raised && !pieces[k + 1]?.raised;
      if (begins && ends && one.text === "2") text += " squared";
      else {
        if (begins) text += " to the power of ";
        text += one.said;
        if (ends && !begins) text += ", end of power, ";
      }
    });
    return text
      .replace(/\s+,/g, ",")
      .replace(/,(?:\s*,)+/g, ",")
      .replace(/\s+/g, " ")
      .replace(/^[\s,]+|[\s,]+$/g, "");
  }

  return { written, said, saidNumber };
})();
