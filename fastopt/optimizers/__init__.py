"""The public optimizers, one file each, and how one is found by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastopt.optimizers.base import Optimizer

__all__ = ["names", "optimizer"]


def optimizer(name: str, params: Any, /, *args: Any, **options: Any) -> Optimizer:
    """Return the optimizer of a name, made with these parameters and options.

    ``fastopt.optimizer("adamw", params, lr=1e-3)`` is ``fastopt.AdamW(params, lr=1e-3)``.

    Example:
        >>> import numpy as np
        >>> import fastopt
        >>> opt = fastopt.optimizer("adam-w", np.ones(2), lr=1e-3)
        >>> type(opt).__name__, opt.lr
        ('AdamW', 0.001)

    Args:
        name: that of a class, such as a configuration holds it. Case and whatever is neither a
            letter nor a digit do not matter: "AdamW", "adamw", "adam_w" and "Adam-W" are one.
        params: as the class takes them.
        args, options: what else the class takes.

    Raises:
        TypeError: for a name that is no string.
        ValueError: for one that no optimizer has; it tells the closest.
        Whatever the class raises.
    """
    return named(name)(params, *args, **options)


def named(name: str) -> type[Optimizer]:
    """Return the class of the optimizer of a name; TypeError and ValueError as ``optimizer``."""
    if not isinstance(name, str):
        raise TypeError(f"the name of an optimizer must be a string; got {name!r:.200}")
    known = {_plain(one): one for one in names()}
    if _plain(name) not in known:
        raise ValueError(
            f"there is no optimizer {name!r:.200}{_closest(_plain(name), known)} "
            "fastopt.optimizers.names() lists all"
        )
    import fastopt

    make: type[Optimizer] = getattr(fastopt, known[_plain(name)])
    return make


def names(pattern: str = "*") -> list[str]:
    """Return the names of the optimizers that match a pattern, in alphabetical order.

    ``fastopt.optimizers.names("adam*")`` has "Adam" and "AdamW" in it. No optimizer is imported for
    that.

    Example:
        >>> import fastopt
        >>> fastopt.optimizers.names("adam?")
        ['AdamP', 'AdamW']
        >>> len(fastopt.optimizers.names()) > 50
        True

    Args:
        pattern: as in a shell: "*" is anything, "?" one letter or digit, "[bw]" one of these. Case
            and other punctuation do not matter. All names by default.

    Raises:
        TypeError: for a pattern that is no string.
    """
    if not isinstance(pattern, str):
        raise TypeError(f"the pattern of names must be a string; got {pattern!r:.200}")
    from fnmatch import fnmatchcase

    import fastopt  # whose table of public names says where each stands

    wanted = _plain(pattern, "*?[]!-" if "[" in pattern else "*?")
    places = fastopt._ON_FIRST_USE.items()
    every = [name for name, module in places if module.startswith("optimizers.")]
    return sorted((n for n in every if fnmatchcase(_plain(n), wanted)), key=str.lower)


def _plain(name: str, besides: str = "") -> str:
    """Return a name in lower case, without anything but letters, digits and what is named."""
    return "".join(one for one in name.lower() if one.isalnum() or one in besides)


def _closest(plain: str, known: dict[str, str]) -> str:
    """Return which of the known names are close, as a question; ";" if none is."""
    from difflib import get_close_matches  # a millisecond

    close = [known[one] for one in get_close_matches(plain, known, n=3)]
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ";"
