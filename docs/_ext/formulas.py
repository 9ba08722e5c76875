"""Formulas of docstrings, which are plain text there, as TeX.

A line such as ``m  <- beta1 * m + (1 - beta1) * g      m = 0 at first`` is an assignment and a
remark. The assignment is read as Python's expressions are and written as TeX; what cannot be read
so stays the text that it is.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

GREEK = {
    **{name: f"\\{name}" for name in ("alpha", "beta", "gamma", "delta", "eta", "theta")},
    **{name: f"\\{name}" for name in ("kappa", "mu", "nu", "rho", "sigma", "pi")},
    "eps": "\\varepsilon",
    "lambd": "\\lambda",
}
FUNCTIONS = {"max": "\\max", "min": "\\min", "cos": "\\cos", "sum": "\\textstyle\\sum"}
ASSIGNMENT = re.compile(r"(?P<left>[^<>=]+?)\s*(?P<sign><-|=)\s*(?P<right>[^<>=].*)", re.DOTALL)
WORDS = re.compile(r"^(if|else|while|for|with|def|return|try|finally|break)\b", re.MULTILINE)
REMARK_FROM = 30
"""The column from which on a line that begins there continues the remark of the one above."""


@dataclass(frozen=True)
class Row:
    """A line of a formula: its parts, each TeX or (where ``tex`` is None) text, and the remark."""

    parts: tuple[Part, ...]
    remark: str


@dataclass(frozen=True)
class Part:
    """An assignment or an expression, as it stands in the docstring and as TeX."""

    text: str
    tex: str | None


def is_code(text: str) -> bool:
    """Return whether an indented block of a docstring is Python, and not a formula."""
    if "<-" in text:
        return False
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def is_formula(text: str) -> bool:
    """Return whether enough of an indented block can be written as TeX to be shown as such."""
    if WORDS.search(text):
        return False
    parts = [part for row in rows(text.splitlines()) for part in row.parts]
    return sum(part.tex is not None for part in parts) >= 0.4 * len(parts)


def rows(lines: list[str]) -> list[Row]:
    """Return the rows of a formula, whose lines are without their common indentation."""
    found = []
    for line in lines:
        if not line.strip():
            continue
        if len(line) - len(line.lstrip()) >= REMARK_FROM:
            found.append(Row((), line.strip()))
        else:
            found.append(_row(line))
    return found


def _row(line: str) -> Row:
    joined = re.sub(r"\s+(<-|=)\s+", r" \1 ", line.strip())
    formula, *remarks = re.split(r"(?<![,;:\s])\s{2,}", joined)
    remark = " ".join(remarks)
    if tex(formula) is None and (cut := re.match(r"(.*\S), ((?:from|and|where|over) .*)", formula)):
        formula, remark = cut[1], f"{cut[2]}; {remark}" if remark else cut[2]
    parts = tuple(Part(part, tex(part)) for part in re.split(r"[,;]\s{2,}", formula))
    return Row(parts, remark)


def tex(text: str) -> str | None:
    """Return an assignment or an expression as TeX; None if it is neither."""
    found = ASSIGNMENT.fullmatch(text)
    if found is None:
        return _expression(text)
    left, right = _expression(found["left"]), _expression(found["right"])
    if left is None:
        return None
    if right is None:
        if found["sign"] != "<-" or re.search(r"[\\{}$\"]", found["right"]):
            return None
        right = f"\\text{{{found['right']}}}"
    sign = "\\leftarrow" if found["sign"] == "<-" else "="
    return f"{left} {sign} {right}"


def _expression(text: str) -> str | None:
    plain = re.sub(r"\|([^|]+)\|", r"norm__(\1)", text)
    plain = re.sub(r"\b(\w*[^\W_])_\(([^()]*)\)", r"sub__(\1, \2)", plain)
    plain = re.sub(r"\b([A-Za-z]+)'", r"\1__prime", plain).replace("^", "**")
    plain = re.sub(r"\b(\d)([a-df-z])\b", r"\1 * \2", plain)
    try:
        tree = ast.parse(plain.strip(), mode="eval")
        return _Writer().of(tree.body)
    except (SyntaxError, NotImplementedError):
        return None


def name(text: str) -> str:
    """Return a name as TeX: Greek, with its index, or in upright letters."""
    if text.endswith("__prime"):
        return name(text.removesuffix("__prime")) + "'"
    if text in GREEK:
        return GREEK[text]
    if text == "vmax":
        return "v_{\\mathrm{max}}"
    if hat := re.fullmatch(r"([a-z])hat", text):
        return f"\\hat {hat[1]}"
    if index := re.fullmatch(r"([A-Za-z]+?)_?(\d+|_[a-z])", text):
        if index[1] in GREEK or len(index[1]) == 1:
            return f"{name(index[1])}_{{{index[2].lstrip('_')}}}"
    elif index := re.fullmatch(r"([A-Za-z]|beta|mu|rho)_(old|base)", text):
        return f"{name(index[1])}_{{\\mathrm{{{index[2]}}}}}"
    elif index := re.fullmatch(r"([GRa-z])(k)", text):
        return f"{index[1]}_{index[2]}"
    if len(text) == 1:
        return text
    return "\\mathrm{" + text.replace("_", "\\_") + "}"


class _Writer:
    """Writes an expression as TeX; NotImplementedError for what is no formula."""

    LEVEL = {ast.Add: 1, ast.Sub: 1, ast.Mult: 2, ast.Div: 2, ast.MatMult: 2, ast.Pow: 4}

    def of(self, node: ast.expr, level: int = 0, fractions: int = 0) -> str:
        """Return a node as TeX, in brackets if it binds less than ``level``."""
        match node:
            case ast.BinOp(op=ast.Div()):
                return self._quotient(node, level, fractions)
            case ast.BinOp(op=ast.Pow()):
                return self._power(node, fractions)
            case ast.BinOp():
                own = self.LEVEL.get(type(node.op))
                if own is None:
                    raise NotImplementedError
                left = self.of(node.left, own, fractions)
                # A sum is the same without the brackets on its right; a difference is not.
                right = self.of(node.right, own + isinstance(node.op, ast.Sub), fractions)
                return self._in_brackets(f"{left} {self._sign(node)} {right}", own < level)
            case ast.UnaryOp(op=ast.USub()):
                return self._in_brackets(f"-{self.of(node.operand, 3, fractions)}", level > 1)
            case ast.Name():
                return name(node.id)
            case ast.Constant(value=value) if value is Ellipsis:
                return "\\cdots"
            case ast.Constant(value=int() | float()):
                return self._number(node.value)
            case ast.Tuple():
                return ",\\ ".join(self.of(one, 0, fractions) for one in node.elts)
            case ast.Attribute(attr="T"):
                return f"{self.of(node.value, 5, fractions)}^{{\\top}}"
            case ast.Subscript():
                return f"{self.of(node.value, 5)}_{{{self.of(node.slice)}}}"
            case ast.Call(func=ast.Name(), keywords=[]):
                return self._call(node, fractions)
        raise NotImplementedError

    @staticmethod
    def _number(value: object) -> str:
        text = repr(value)
        if power := re.fullmatch(r"([\d.]+)e(-?)0*(\d+)", text):
            factor = "" if power[1] == "1" else f"{power[1]} \\cdot "
            return f"{factor}10^{{{power[2]}{power[3]}}}"
        return text

    def _sign(self, node: ast.BinOp) -> str:
        if isinstance(node.op, ast.Add):
            return "+"
        if isinstance(node.op, ast.Sub):
            return "-"
        return "\\," if isinstance(node.op, ast.MatMult) else "\\cdot"

    def _quotient(self, node: ast.BinOp, level: int, fractions: int) -> str:
        if fractions:
            text = f"{self.of(node.left, 2, fractions)} / {self.of(node.right, 3, fractions)}"
            return self._in_brackets(text, level > 2)
        over = self.of(node.left, 0, fractions + 1)
        return f"\\frac{{{over}}}{{{self.of(node.right, 0, fractions + 1)}}}"

    def _power(self, node: ast.BinOp, fractions: int) -> str:
        base = self.of(node.left, 5, fractions)
        return f"{base}^{{{self.of(node.right, 0, fractions + 1)}}}"

    def _call(self, node: ast.Call, fractions: int) -> str:
        called = node.func.id  # type: ignore[attr-defined]
        given = [self.of(one, 0, fractions) for one in node.args]
        if called == "sqrt":
            return f"\\sqrt{{{given[0]}}}"
        if called == "cbrt":
            return f"\\sqrt[3]{{{given[0]}}}"
        if called == "norm__":
            return f"\\left|{given[0]}\\right|"
        if called == "sub__":
            return f"{given[0]}_{{{given[1]}}}"
        written = FUNCTIONS.get(called) or f"\\operatorname{{{called}}}".replace("_", "\\_")
        return f"{written}\\left({', '.join(given)}\\right)"

    @staticmethod
    def _in_brackets(text: str, needed: bool) -> str:
        return f"\\left({text}\\right)" if needed else text
