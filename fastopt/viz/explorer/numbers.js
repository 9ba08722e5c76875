// Numbers as a reader sees them.
"use strict";

const Numbers = (() => {
  const RAISED = {
    "-": "⁻",
    0: "⁰",
    1: "¹",
    2: "²",
    3: "³",
    4: "⁴",
    5: "⁵",
    6: "⁶",
    7: "⁷",
    8: "⁸",
    9: "⁹",
  };

  const inPowers = (size) => size >= 1e5 || size < 1e-4;

  const rounded = (number, digits) =>
    Number.isFinite(number) ? Number(number.toPrecision(digits)) : number;

  // So many digits, with a true minus and powers of ten; zeros at the end are left out.
  function significant(number, digits) {
    if (Number.isNaN(number)) return "not a number";
    if (!Number.isFinite(number)) return number > 0 ? "∞" : "−∞";
    if (number === 0) return "0";
    const size = Math.abs(number);
    const minus = number < 0 ? "−" : "";
    if (inPowers(size)) {
      const [mantissa, power] = size.toExponential(digits - 1).split("e");
      const raised = [...String(Number(power))].map((sign) => RAISED[sign]).join("");
      return `${minus}${String(Number(mantissa))}·10${raised}`;
    }
    return minus + String(Number(size.toPrecision(digits)));
  }

  // About four digits; exact integers as they are.
  const text = (number, digits = 4) =>
    significant(number, inPowers(Math.abs(number)) ? digits - 1 : digits);

  // What is put into fields and links: short, and exactly the same number when read back.
  const plain = (number) => String(number);

  const point = (p, digits = 4) => `(${text(p[0], digits)}, ${text(p[1], digits)})`;

  return { rounded, significant, text, plain, point };
})();
