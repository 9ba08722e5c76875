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
        self._tree = tree
        self._grads_root = grads_root
        self._updated: list[Group] | None = self.groups  # whom the tree is ready to look at

    def check(self, grads: Any) -> list[Group]:
        """Look at all arrays of a step before anything is written; return whom it updates.

        What stands for the parameters of groups that are not trainable is not looked at.
        """
        updated = [group for group in self.groups if group.follow_settings()]
        if not updated:
            return updated
        if updated != self._updated:
            self._updated = None  # until it is: an interrupt can come in between
            frozen = [group for group in self.groups if group not in updated]
            self._tree.ignore(place for group in frozen for place in group.positions)
            self._updated = updated
        now, given = self._tree.current(), self._tree.match(grads, self._grads_root)
        for group in updated:
            group.check(now, given)
        return updated
