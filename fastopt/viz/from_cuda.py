"""The CUDA C++ text of rules as JavaScript: the few forms of it that rules are written in.

Both have the same doubles, operators and precedence, so that nearly every token stays as it is.
What differs is refused: whole numbers that meet each other (C++ divides them whole), truth values
that are calculated with, names that JavaScript keeps for itself. So is whatever is not known here,
by the rule's name and the token.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, NoReturn

Type = Literal["real", "whole", "bool"]

_TOKEN = re.compile(
    r"\s*(?:"
    r"(?P<number>(?:\d|\.\d)(?:[eE][+-]|[\w.])*)|"
    r"(?P<name>[A-Za-z_]\w*)|"
    # Those of several characters first, so that none is taken for two others.
    r"(?P<sign>//|/\*|\+\+|--|<<|>>|->|::|[-+*/%&|^]=|<=|>=|==|!=|&&|\|\||\S)"
    r")"
)
_WHOLE = re.compile(r"0|[1-9]\d*")
_FRACTION = re.compile(r"(?:\d+\.\d*|\.\d+)(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+")

FUNCTIONS = {"sqrt": "Math.sqrt", "fabs": "Math.abs"}
"""What rules call, each with one number: exact in both languages."""

_TYPES: dict[str, Type] = {"real": "real", "double": "real", "bool": "bool"}
_COMPARISONS = {"<": "<", ">": ">", "<=": "<=", ">=": ">=", "==": "===", "!=": "!=="}

# fmt: off
RESERVED = frozenset({
    "arguments", "async", "await", "break", "case", "catch", "class", "const", "continue",
    "debugger", "default", "delete", "do", "else", "enum", "eval", "export", "extends", "false",
    "finally", "for", "function", "if", "implements", "import", "in", "instanceof", "interface",
    "let", "new", "null", "of", "package", "private", "protected", "public", "return", "static",
    "super", "switch", "this", "throw", "true", "try", "typeof", "undefined", "var", "void",
    "while", "with", "yield", "Math", "NaN", "Infinity",
})
# fmt: on
"""Names that are no variable's in a JavaScript module, or stand for something else there."""


def translated(
    owner: str, text: str, given: Iterable[str], assigned: Iterable[str], indent: str = ""
) -> str:
    """Return JavaScript statements that do what C++ statements do, one in each line.

    Args:
        owner: whose text it is, for errors, such as "rule adam".
        text: the C++.
        given: the names of numbers that it reads.
        assigned: the names of those that it may read and assign.
        indent: what each line begins with.

    Raises:
        ValueError: for whatever is not known to mean the same in both languages; it names the
            owner and the token.
    """
    reader = _Reader(owner, text)
    for name in given:
        reader.declare(name, "real", constant=True)
    for name in assigned:
        reader.declare(name, "real", constant=False)
    lines: list[str] = []
    while reader.token:
        lines += reader.statement(indent)
    return "\n".join(lines)


@dataclass
class _Expression:
    text: str
    type: Type


@dataclass
class _Reader:
    """Reads statements from the tokens of a text."""

    owner: str
    text: str
    place: int = 0
    types: dict[str, Type] = field(default_factory=dict)
    constants: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.kind = self.token = ""
        self.advance()

    # Tokens

    def advance(self) -> str:
        """Go on to the next token, and return the one before it; the last one is ""."""
        before = self.token
        found = _TOKEN.match(self.text, self.place)
        if found is None:  # nothing but white space is left
            self.kind = self.token = ""
        else:
            self.kind = str(found.lastgroup)
            self.token, self.place = found[self.kind], found.end()
        return before

    def take(self, token: str) -> None:
        """Go past this token."""
        if self.token != token:
            self.refuse(f"where {token!r} is expected")
        self.advance()

    def refuse(self, why: str) -> NoReturn:
        """Raise for the token that is next."""
        raise ValueError(
            f"{self.owner}: its C++ has {self.token or 'its end'!r} {why}, which is not translated "
            "to JavaScript; write it in the way other rules do, or add it to "
            "fastopt/viz/from_cuda.py"
        )

    # Names

    def declare(self, name: str, type: Type, constant: bool) -> None:
        """Know a name from here on."""
        if name in RESERVED or name in FUNCTIONS or name in _TYPES or name in self.types:
            raise ValueError(
                f"{self.owner}: its C++ calls a variable {name!r}, which is another thing already "
                "there or in JavaScript; give it another name"
            )
        self.types[name] = type
        if constant:
            self.constants.add(name)

    def new_name(self) -> str:
        """Return the name that is next."""
        if self.kind != "name":
            self.refuse("where a name is expected")
        return self.advance()

    # Statements

    def statement(self, indent: str) -> list[str]:
        """Return the lines of a statement."""
        if self.token == "if":
            return self.condition(indent)
        if self.token == "const" or self.token in _TYPES:
            return [indent + self.declaration()]
        if self.kind != "name" or self.token not in self.types:
            self.refuse("at the beginning of a statement")
        if self.token in self.constants:
            self.refuse("assigned, and it is constant")
        name = self.advance()
        self.take("=")
        value = self.value_of(self.types[name])
        self.take(";")
        return [f"{indent}{name} = {value};"]

    def declaration(self) -> str:
        constant = self.token == "const"
        if constant:
            self.advance()
        if self.token not in _TYPES:
            self.refuse("in the place of a type")
        type = _TYPES[self.advance()]
        name = self.new_name()
        self.take("=")
        value = self.value_of(type)
        self.take(";")
        self.declare(name, type, constant)
        return f"{'const' if constant else 'let'} {name} = {value};"

    def condition(self, indent: str) -> list[str]:
        self.take("if")
        self.take("(")
        truth = self.value_of("bool")
        self.take(")")
        inner: list[str] = []
        known = set(self.types)
        if self.token == "{":
            self.advance()
            while self.token != "}":
                inner += self.statement(indent + "  ")
            self.advance()
        else:
            inner += self.statement(indent + "  ")
        for name in set(self.types) - known:
            del self.types[name]
            self.constants.discard(name)
        return [f"{indent}if ({truth}) {{", *inner, f"{indent}}}"]

    # Expressions, from what binds least to what binds most

    def value_of(self, type: Type) -> str:
        """Return an expression of this type; whole numbers become real ones."""
        value = self.expression()
        if (value.type == "bool") != (type == "bool"):
            self.refuse(f"after a value of type {value.type} in the place of one of type {type}")
        return value.text

    def expression(self) -> _Expression:
        chosen = self.either()
        if self.token != "?":
            return chosen
        if chosen.type != "bool":
            self.refuse("after a number")
        self.advance()
        one = self.expression()
        self.take(":")
        other = self.expression()
        if (one.type == "bool") != (other.type == "bool"):
            self.refuse("after a choice of a number and a truth value")
        type: Type = "real" if "real" in (one.type, other.type) else one.type
        return _Expression(f"{chosen.text} ? {one.text} : {other.text}", type)

    def either(self) -> _Expression:
        return self.logic("||", self.both)

    def both(self) -> _Expression:
        return self.logic("&&", self.comparison)

    def logic(self, sign: str, part: Callable[[], _Expression]) -> _Expression:
        value = part()
        while self.token == sign:
            if value.type != "bool":
                self.refuse("after a number")
            self.advance()
            right = part()
            if right.type != "bool":
                self.refuse("after a number")
            value = _Expression(f"{value.text} {sign} {right.text}", "bool")
        return value

    def comparison(self) -> _Expression:
        left = self.sum_of_terms()
        if self.token not in _COMPARISONS:
            return left
        sign = _COMPARISONS[self.token]
        self.check_number(left)
        self.advance()
        right = self.sum_of_terms()
        self.check_numbers(left, right)
        return _Expression(f"{left.text} {sign} {right.text}", "bool")

    def sum_of_terms(self) -> _Expression:
        return self.arithmetic(("+", "-"), self.product)

    def product(self) -> _Expression:
        return self.arithmetic(("*", "/"), self.signed)

    def arithmetic(self, signs: tuple[str, str], part: Callable[[], _Expression]) -> _Expression:
        value = part()
        while self.token in signs:
            self.check_number(value)
            sign = self.advance()
            right = part()
            self.check_numbers(value, right)
            value = _Expression(f"{value.text} {sign} {right.text}", "real")
        return value

    def signed(self) -> _Expression:
        if self.token != "-":
            return self.primary()
        self.advance()
        value = self.primary()  # so a second sign is refused
        self.check_number(value)
        return _Expression(f"-{value.text}", value.type)

    def primary(self) -> _Expression:
        if self.token == "(":
            self.advance()
            value = self.expression()
            self.take(")")
            return _Expression(f"({value.text})", value.type)
        if self.kind == "number":
            return self.number()
        if self.token in FUNCTIONS:
            function = FUNCTIONS[self.advance()]
            self.take("(")
            value = self.expression()
            if value.type != "real":
                self.refuse(f"after an argument of type {value.type}")
            self.take(")")
            return _Expression(f"{function}({value.text})", "real")
        if self.token not in self.types:
            self.refuse("where a number or a known name is expected")
        return _Expression(self.token, self.types[self.advance()])

    def number(self) -> _Expression:
        if _WHOLE.fullmatch(self.token):
            return _Expression(self.advance(), "whole")
        if not _FRACTION.fullmatch(self.token):
            self.refuse("in the place of a number")
        return _Expression(repr(float(self.advance())), "real")

    def check_number(self, value: _Expression) -> None:
        if value.type == "bool":
            self.refuse("beside a truth value")

    def check_numbers(self, left: _Expression, right: _Expression) -> None:
        self.check_number(right)
        if left.type == right.type == "whole":
            self.refuse("after two whole numbers, which C++ calculates with in whole numbers")
