"""Nested parameters: leaves and their names, gradients matched to them, hints for non-arrays."""

from __future__ import annotations

import copy
import dataclasses
from collections import UserList, deque
from collections.abc import (
    Callable,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    MutableSequence,
    Sequence,
    ValuesView,
)
from dataclasses import dataclass
from operator import is_
from typing import Any, NamedTuple

import numpy as np
import optree

from fastopt.core import advice, arrays
from fastopt.core.arrays import Array
from fastopt.core.dtypes import SUPPORTED_DTYPES, name_of

# -------------------------------------------------------------------------------------------------
# Branches. optree knows dict, OrderedDict, defaultdict, list, tuple, deque and namedtuples, each by
# its very class, and reads a tree of the same classes in C. What is of another class, or of another
# one than the parameters are, is read here: mappings by key, sequences by position.

_MAPPINGS = (dict, Mapping)  # the first is asked in less time
_SEQUENCES = (list, tuple, deque, UserList)


def _is_branch(value: Any) -> bool:
    """Return whether something that optree takes for a leaf has entries of its own."""
    return type(value) is not np.ndarray and isinstance(value, _MAPPINGS + _SEQUENCES)


def as_plain(tree: Any) -> Any:
    """Return a tree with dict, list and tuple for branches that optree does not know.

    The tree itself, if it has none.
    """
    leaves, spec = optree.tree_flatten(tree, none_is_leaf=True)
    if not any(map(_is_branch, leaves)):
        return tree
    return spec.unflatten(map(_plain_branch, leaves))


def _plain_branch(value: Any) -> Any:
    if not _is_branch(value):
        return value
    if isinstance(value, _MAPPINGS):
        return {key: as_plain(value[key]) for key in value}
    below = map(as_plain, value)
    return tuple(below) if isinstance(value, tuple) else list(below)


def leaves_of(tree: Any) -> list[Any]:
    """Return the leaves of any tree, None too; mappings in the order of their sorted keys."""
    leaves: list[Any] = optree.tree_leaves(tree, none_is_leaf=True)
    if not any(map(_is_branch, leaves)):
        return leaves
    return optree.tree_leaves(as_plain(tree), none_is_leaf=True)


def flattened(tree: Any) -> tuple[list[Any], Callable[[Iterable[Any]], Any]]:
    """Return the leaves of any tree, and what nests others as they are.

    None is no leaf but a part of the structure. A branch of a class that optree does not know is
    nested in its own class where that can be made of its entries, as ``Tree.nest`` does it.
    """
    plain = as_plain(tree)
    leaves, spec = optree.tree_flatten(plain)

    def nest(values: Iterable[Any]) -> Any:
        nested = spec.unflatten(values)
        try:
            return _like(tree, nested)
        except (ValueError, TypeError, LookupError):  # the tree is not what it was
            return nested

    return leaves, spec.unflatten if plain is tree else nest


def _like(given: Any, plain: Any) -> Any:
    """Return a plain tree with branches of the classes that a tree of this structure has."""
    leaves, spec = optree.tree_flatten(given, none_is_leaf=True)
    parts = spec.flatten_up_to(plain)
    return spec.unflatten(map(_branch_like, leaves, parts))


def _branch_like(given: Any, plain: Any) -> Any:
    """Return a branch of the same class as another one, if that can be made; else a plain one."""
    if not _is_branch(given):
        return plain
    kind: Any = type(given)
    if not isinstance(given, _MAPPINGS):
        entries = type(plain)(map(_like, given, plain))
        return _made(lambda: kind(entries), kind, list(enumerate(entries))) or entries
    named = {key: _like(given[key], plain[key]) for key in given}
    same = list(named.items())
    return (
        _made(lambda: kind(named), kind, same) or _made(lambda: kind(**named), kind, same) or named
    )


def _made(make: Callable[[], Any], kind: Any, entries: Sequence[tuple[Any, Any]]) -> Any:
    """Return what a class makes of entries; None if it does not hold these very ones."""
    try:
        made = make()
        held = type(made) is kind and len(made) == len(entries)
        # A mapping may wrap branches whenever it is asked for them.
        right = held and all(made[k] is one or _is_branch(one) for k, one in entries)
    except Exception:  # of a user's class
        return None
    return made if right else None


@dataclass(frozen=True, slots=True)
class _Branch:
    """A branch of the parameters, with those below it; None below stands for a leaf.

    Keys of ``optional`` leaves may be left out.
    """

    kind: type
    keys: tuple[Any, ...]
    known: frozenset[Any]
    optional: frozenset[Any]
    below: tuple[_Branch | None, ...]
    holds_leaves: bool  # alone

    @classmethod
    def of(cls, spec: optree.PyTreeSpec, optional: Iterator[bool] | None = None) -> _Branch | None:
        """Return the branches of a structure, whose leaves are ``optional`` in their order."""
        if spec.type is None:
            return None
        keys, below, free = tuple(spec.entries()), [], []
        for key, child in zip(keys, spec.children(), strict=True):
            if child.type is None and optional is not None and next(optional):
                free.append(key)
            below.append(cls.of(child, optional))
        known = frozenset(keys), frozenset(free)
        return cls(spec.type, keys, *known, tuple(below), not any(below))

    def read(self, given: Any) -> list[Any]:
        """Return the leaves of a tree of this structure; ValueError for another one."""
        entries = self.entries(given)
        if self.holds_leaves:
            return entries
        found: list[Any] = []
        for branch, entry in zip(self.below, entries, strict=True):
            if branch is None:
                found.append(entry)
            else:
                found += branch.read(entry)
        return found

    def entries(self, given: Any) -> list[Any]:
        """Return what stands in a branch, in the order of the keys; ValueError for another one."""
        kind = self.kind
        if issubclass(kind, dict):
            if isinstance(given, dict):
                same = given.keys() == self.known
            else:
                same = isinstance(given, Mapping) and set(given) == self.known
            if same:
                return [given[key] for key in self.keys]
            if self.optional and isinstance(given, Mapping):
                there = set(given)
                if self.known - self.optional <= there <= self.known:
                    return [given[key] if key in there else None for key in self.keys]
        elif issubclass(kind, _SEQUENCES):
            fields = getattr(given, "_fields", None)  # of a namedtuple
            named = fields is None or fields == getattr(kind, "_fields", fields)
            if isinstance(given, _SEQUENCES) and len(given) == len(self.keys) and named:
                return list(given)
        elif type(given) is kind:  # a class that was registered with optree
            tree: Any = given
            found = optree.tree_leaves(tree, lambda one: one is not given, none_is_leaf=True)
            if len(found) == len(self.keys):
                return found
        raise ValueError("another structure")


def _unread(tree: Any) -> list[Any]:
    """Stand for the way to read trees before one has been seen."""
    raise ValueError("no tree has been read yet")


# -------------------------------------------------------------------------------------------------
# Nested parameters: their leaves, the leaves' names, and gradients matched to them.


class Origin(NamedTuple):
    """The parameter that a leaf is a part of, and where in its real numbers the leaf begins."""

    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True, slots=True)
class Leaf:
    """One parameter: where it stands in the user's tree, its name in a state_dict, its array."""

    path: str  # params["layers"][0]["W"], of a list of groups params[0]["params"]["W"]
    place: str  # ["layers"][0]["W"], or [0]["W"]: what stands behind the name of its gradients
    name: str  # layers.0.W
    array: Array
    origin: Origin | None = None  # what the array is a part of

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """The shape of the parameter, of which the array may be a part."""
        return self.array.shape if self.origin is None else self.origin.shape

    @property
    def is_counter(self) -> bool:
        """Whether it holds whole numbers or truth values, which stay as they are."""
        return self.array.dtype.kind in COUNTERS


COUNTERS = "biu"
"""The kinds of dtypes that stand in a tree without being trained: in groups that are frozen."""


class Tree:
    """The user's nested parameters, kept with the structure they had when they were handed in.

    With ``grouped`` the parameters are a list of trees, one for each parameter group, and so are
    all trees that are matched to them.

    A tree is read by optree where its branches are of the very classes that the parameters' are,
    else by ``_Branch``. Which of both it is for gradients and for the parameters shows with the
    first ones, and is tried first for the next.
    """

    def __init__(self, params: Any, grouped: bool = False) -> None:
        plain = as_plain(params)
        found, values, self._spec = optree.tree_flatten_with_path(plain, none_is_leaf=True)
        self.params: Any = params
        self.grouped = grouped
        self._is_plain = plain is params
        self._order: list[int] | None = None  # see ignore
        self._ignored: tuple[str, ...] = ()
        self.resizes: dict[int, int] = {}
        """How often the rows of a leaf became others, by position: see ``with_array``."""
        self.selections: tuple[tuple[int, ...], ...] = ()
        """The members that were chosen of those of before, each time: see ``Optimizer.select``."""
        self._places = [_written(accessor) for accessor in self._spec.accessors()]
        names = [_name(path, grouped) for path in found]
        paths = [self._path("params", place) for place in self._places]
        _check_unique(names, paths)
        self.leaves: list[Leaf] = [
            Leaf(path, place, name, _checked(path, value))
            for path, place, name, value in zip(paths, self._places, names, values, strict=True)
        ]
        self._read_as(self._spec)
        self._read_whole = self._read_params  # whatever is ignored
        if not self._is_plain:
            self._check_kept()

    def _read_as(self, spec: optree.PyTreeSpec, optional: Iterator[bool] | None = None) -> None:
        """Read trees by this structure from now on, of which some leaves may be left out."""
        self._read_spec = spec
        self._branch = _Branch.of(spec, optional)
        self._read_params = self._reader(self.params)
        self._read_grads: Callable[[Any], list[Any]] = _unread

    def _reader(self, tree: Any) -> Callable[[Any], list[Any]]:
        """Return what reads trees of the same classes as this one in the least time."""
        spec, branch = self._read_spec, self._branch
        if branch is None or spec.is_prefix(optree.tree_structure(tree, none_is_leaf=True)):
            return spec.flatten_up_to
        return branch.read

    def _check_kept(self) -> None:
        """Raise TypeError for a mapping that makes an array anew whenever it is asked for it."""
        for leaf, array in zip(self.leaves, self.current(), strict=True):
            if array is not leaf.array:
                raise TypeError(
                    f"{leaf.path} is another array whenever it is asked for, as those of a file "
                    "are, so it would not be trained; hand in dict(...) of what holds it"
                )

    def current(self) -> list[Any]:
        """Return what stands at the leaves of the user's tree now."""
        try:
            found = self._read_params(self.params)
        except (ValueError, TypeError):
            found = self._read(self.params, "params")
            self._read_params = self._reader(self.params)
        return found if self._order is None else self._in_order(found)

    def everything(self) -> list[Any]:
        """Return what stands at the leaves now, those that are ignored too."""
        return self.leaves_in(self.params)

    def match(self, grads: Any, root: str = "grads") -> list[Any]:
        """Return what is nested as the parameters in the order of the leaves.

        Mappings are matched by key and sequences by position, whatever their classes. Raises
        ValueError for another structure; ``root`` is what the message calls the tree.
        """
        if self.grouped:
            grads = self._as_list(grads, root)
        try:
            found = self._read_grads(grads)
        except (ValueError, TypeError):
            first = self._read_grads is _unread
            found = self._read(grads, root)
            # What optree reads, _Branch reads too, so no tree makes it fail every other step.
            branch = self._branch
            self._read_grads = self._reader(grads) if first or branch is None else branch.read
        return found if self._order is None else self._in_order(found)

    def _read(self, given: Any, root: str) -> list[Any]:
        """Return what stands at the leaves of a tree of any classes."""
        if self._branch is None:
            return [given]
        try:
            return self._branch.read(given)
        except (ValueError, TypeError):
            raise ValueError(self._difference(given, root)) from None

    def match_group(self, number: int, given: Any, root: str) -> list[Any]:
        """Return what is nested as the tree of one group of a list, in the order of its leaves."""
        part = self._spec.children()[number]
        branch = _Branch.of(part)
        try:
            return [given] if branch is None else branch.read(given)
        except (ValueError, TypeError):
            places = [_written(accessor) for accessor in part.accessors()]
            raise ValueError(_said_difference(branch, places, (), given, root)) from None

    def groups(self) -> Iterator[range]:
        """Yield the positions of each group's leaves, where the parameters are a list of groups."""
        start = 0
        for part in self._spec.children():
            yield range(start, start + part.num_leaves)
            start += part.num_leaves

    def as_given(self) -> list[int]:
        """Return the positions of the leaves in the order that the user's own mappings have."""
        numbered = self._spec.unflatten(range(len(self.leaves)))
        with optree.dict_insertion_ordered(True, namespace="fastopt as given"):
            return optree.tree_leaves(numbered, namespace="fastopt as given")

    def ignore(self, positions: Iterable[int]) -> None:
        """Look no more at some leaves, nor at branches that hold no others: they are None then."""
        ignored, count = frozenset(positions), len(self.leaves)

        def is_ignored(node: Any) -> bool:
            found = optree.tree_leaves(node)
            return bool(found) and ignored.issuperset(found)

        numbered = self._spec.unflatten(range(count))
        parts, spec = optree.tree_flatten(numbered, is_ignored, none_is_leaf=True)
        rows = {part: row for row, part in enumerate(parts) if not is_ignored(part)}
        places = zip(map(_written, spec.accessors()), parts, strict=True)
        self._read_as(spec, iter([is_ignored(part) for part in parts]) if ignored else None)
        self._order = [rows.get(position, -1) for position in range(count)] if ignored else None
        self._ignored = tuple(place for place, part in places if is_ignored(part))

    def leaves_in(self, params: Any) -> list[Any]:
        """Return what stands at the leaves of other parameters; ValueError for other nesting."""
        try:
            return self._read_whole(params)
        except (ValueError, TypeError):
            branch = _Branch.of(self._spec)
        if branch is None:
            return [params]
        try:
            found = branch.read(params)
        except (ValueError, TypeError):
            raise ValueError(self._difference(params, "params")) from None
        self._read_whole = branch.read
        return found

    def holds(self, params: Any) -> bool:
        """Return whether these parameters are the arrays that stand here."""
        try:
            found = self.leaves_in(params)
        except ValueError:
            return False
        return all(map(is_, found, (leaf.array for leaf in self.leaves)))

    def with_array(self, position: int, array: Array) -> Tree:
        """Return the tree with an array of other rows at a leaf; the user's own is as it was."""
        leaf = self.leaves[position]
        changed = copy.copy(self)
        changed.selections = self.selections
        changed.resizes = {**self.resizes, position: self.resizes.get(position, 0) + 1}
        changed.leaves = [*self.leaves]
        changed.leaves[position] = dataclasses.replace(leaf, array=_checked(leaf.path, array))
        return changed

    def put(self, position: int) -> None:
        """Put the array of a leaf where it belongs in the user's own tree.

        What stands in a tuple cannot be replaced: then ``params`` is another tree.
        """
        array, accessor = self.leaves[position].array, self._spec.accessors()[position]
        if not len(accessor):
            self.params = array
            return
        inside = self.params
        for entry in accessor[:-1]:
            inside = entry(inside)
        key = accessor[-1].entry
        if inside[key] is array:
            return
        if isinstance(inside, MutableMapping | MutableSequence):
            inside[key] = array
        else:
            found = self.everything()
            found[position] = array
            self.params = self.nest(found)

    def nest(self, values: Iterable[Any]) -> Any:
        """Return values, in the order of the leaves, nested as the parameters are.

        A branch is of the parameters' own class where that can be made of its entries.
        """
        nested = self._spec.unflatten(values)
        if self._is_plain:
            return nested
        try:
            return _like(self.params, nested)
        except (ValueError, TypeError, LookupError):  # the tree is not what it was
            return nested

    def _in_order(self, found: Sequence[Any]) -> list[Any]:
        return [None if row < 0 else found[row] for row in self._order or ()]

    def _as_list(self, grads: Any, root: str) -> list[Any]:
        if not isinstance(grads, _SEQUENCES) or len(grads) != len(self.params):
            size = f" of {len(grads)}" if isinstance(grads, _SEQUENCES) else ""
            raise ValueError(
                f"{root} must be a list of {len(self.params)} trees, one for each parameter "
                f"group; got {type(grads).__name__}{size}"
            )
        return list(grads)

    def _path(self, root: str, place: str) -> str:
        """Return where something stands; the trees of groups are entries of dicts in the list."""
        if not self.grouped or root != "params":
            return root + place
        number, _, rest = place.partition("]")
        return f'{root}{number}]["params"]{rest}'

    def _difference(self, given: Any, root: str) -> str:
        """Say how a tree differs from the parameters' structure."""
        return _said_difference(self._branch, self._places, self._ignored, given, root, self._path)


def _said_difference(
    branch: _Branch | None,
    places: Iterable[str],
    ignored: tuple[str, ...],
    given: Any,
    root: str,
    path: Callable[[str, str], str] = str.__add__,
) -> str:
    spec = optree.tree_structure(as_plain(given), none_is_leaf=True)
    mine = {place for place in places if not place.startswith(ignored)}
    found = {_written(accessor) for accessor in spec.accessors()}
    theirs = {place for place in found if not place.startswith(ignored)}
    if root == "bounds":  # a pair stands where a leaf does, and is no branch
        above = {place: [one for one in mine if place.startswith(one)] for place in theirs}
        theirs = {leaf for place, found_above in above.items() for leaf in found_above or [place]}
    if mine == theirs:  # in a mapping what is ignored may be left out, in a sequence it may not
        mine.update(s for s in ignored if not any(place.startswith(s) for place in found))
    missing = [path(root, place) for place in sorted(mine - theirs)][:3]
    extra = [path(root, place) for place in sorted(theirs - mine)][:3]
    parts = [f"missing {', '.join(missing)}"] * bool(missing)
    parts += [f"unexpected {', '.join(extra)}"] * bool(extra)
    if not parts and branch is not None:
        parts = [_other_branch(branch, given, root)]
    if "" in found and given is not None:
        parts.append(f"got {type(given).__name__}" + _as_sequence(branch, given, root))
    advice = {
        "params": "Construct a new optimizer for other parameters.",
        "grads": "Use None for a parameter that has no gradient in this step.",
    }
    return (
        f"{root} must be nested as the parameters were when the optimizer was made: "
        f"{'; '.join(parts)}. {advice.get(root, 'Use None for a parameter that has none.')}"
    )


def _other_branch(branch: _Branch, given: Any, place: str) -> str:
    """Return where the first branch of another kind stands; "" if there is none."""
    try:
        entries = branch.entries(given)
    except ValueError:
        return f"{place} is a {type(given).__name__} where the parameters have a " + (
            branch.kind.__name__
        )
    for key, below, entry in zip(branch.keys, branch.below, entries, strict=True):
        if below is not None and (said := _other_branch(below, entry, place + _key_text(key))):
            return said
    return ""


def _as_sequence(branch: _Branch | None, given: Any, root: str) -> str:
    """Return what makes a list of something that is none, if a list is wanted."""
    wanted = branch is not None and issubclass(branch.kind, _SEQUENCES)
    rows = getattr(given, "shape", ())[:1] == (len(branch.keys) if branch else 0,)
    iterates = isinstance(given, Iterator | ValuesView)
    return f", of which list({root}) is one" if wanted and (rows or iterates) else ""


def _name(path: tuple[Any, ...], grouped: bool) -> str:
    """Return a parameter's name in a state_dict: its keys, joined with dots.

    An array that is a tree by itself is called params.
    """
    if len(path) == grouped:
        path = (*path, "params")
    return ".".join(map(str, path))


def paths(tree: Any, root: str) -> list[str]:
    """Return where each leaf of a tree stands, as it is written in Python."""
    spec = optree.tree_structure(as_plain(tree), none_is_leaf=True)
    return [root + _written(accessor) for accessor in spec.accessors()]


def _written(accessor: optree.PyTreeAccessor) -> str:
    return "".join(_step_text(entry) for entry in accessor)


def _step_text(entry: optree.PyTreeEntry) -> str:
    """Return one step of a path as it is written in Python: ["W"], [0] or .name."""
    if isinstance(entry, optree.NamedTupleEntry):
        return f".{entry.field}"
    return _key_text(entry.entry)


def _key_text(key: Any) -> str:
    if not isinstance(key, str):
        return f"[{key!r}]"
    if key.isidentifier():
        return f'["{key}"]'
    import json  # two milliseconds, for what has to be quoted

    return f"[{json.dumps(key, ensure_ascii=False)}]"


def _check_unique(names: Sequence[str], paths: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for name, path in zip(names, paths, strict=True):
        if name in seen:
            raise ValueError(
                f"{seen[name]} and {path} would both be called {name!r} in a checkpoint; rename "
                "one of their keys"
            )
        seen[name] = path


def _checked(path: str, value: Any) -> Array:
    """Return a leaf that can be updated in place; raise what keeps it from that otherwise."""
    if arrays.kind(value) is None:
        raise TypeError(
            f"{path} must be a numpy.ndarray or cupy.ndarray; got {type(value).__name__}. "
            f"{advice.for_parameter(value, path)}"
        )
    array: Array = value
    counts = array.dtype.kind in COUNTERS  # refused unless it is frozen: engine.build
    if not array.dtype.isnative or not (name_of(array.dtype) in SUPPORTED_DTYPES or counts):
        raise TypeError(refused_dtype(path, array))
    if not getattr(array.flags, "writeable", True):
        raise ValueError(f"{path} is read-only, and parameters change in place; give a copy")
    if arrays.address(array) % array.dtype.alignment:
        raise ValueError(f"{path} is not aligned to its element size; give a copy")
    if arrays.overlaps_itself(array):
        raise ValueError(
            f"{path} holds elements that share memory (strides {array.strides}, "
            f"shape {array.shape}), so an update would be applied twice; give a copy"
        )
    return array


def refused_dtype(path: str, array: Array) -> str:
    """Return what is said of a dtype that no parameter has."""
    return (
        f"{path} must be of one of the dtypes {', '.join(SUPPORTED_DTYPES)}, in native byte order; "
        f"got {array.dtype!s} ({array.dtype.str}). {advice.for_dtype(array, path)}"
    )
