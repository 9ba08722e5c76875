"""One tree of parameters together with the groups that its leaves belong to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastopt.group import Group
from fastopt.tree import Tree


class Grouping:
    """The groups over one tree: a step's gradients are flattened once for all of them."""

    def __init__(self, tree: Tree, groups: Sequence[Group], grads_root: str) -> None:
        self.groups = list(groups)
        self.tree = tree
        self.grads_root = grads_root
        self._updated: list[Group] | None = self.groups  # whom the tree is ready to look at

    def check(self, grads: Any, copying: bool = True) -> list[Group]:
        """Look at all arrays of a step before anything is written; return whom it updates.

        What stands for the parameters of groups that are not trainable is not looked at. Without
        ``copying`` gradients that would have to be copied are refused.
        """
        updated = self._follow_settings()
        if updated:
            now, given = self.tree.current(), self.tree.match(grads, self.grads_root)
            for group in updated:
                group.check(now, given, copying)
        return updated

    def match(self, grads: Any) -> list[Any]:
        """Return the gradients in the order of the leaves, None where they are not looked at."""
        if not self._follow_settings():
            return [None] * len(self.tree.leaves)
        return self.tree.match(grads, self.grads_root)

    def _follow_settings(self) -> list[Group]:
        """Return the groups that a step updates, and make the tree ready to look at them."""
        updated = [group for group in self.groups if group.follow_settings()]
        if updated and updated != self._updated:
            self._updated = None  # until it is: an interrupt can come in between
            frozen = [group for group in self.groups if group not in updated]
            self.tree.ignore(place for group in frozen for place in group.positions)
            self._updated = updated
        return updated
