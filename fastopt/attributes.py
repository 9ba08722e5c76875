"""Setting an attribute that an optimizer does not have: an error that says where to set it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastopt.param_group import ParamGroups


class KnownAttributes:
    """Refuses public attributes that the class does not have: ``opt.betas = ...`` does nothing.

    A subclass declares those of its own in its body. (Reading one stays as it is: a __getattr__
    would slow down the reading of all others.)
    """

    _param_groups: ParamGroups

    if not TYPE_CHECKING:  # it would hold that every attribute can be set

        def __setattr__(self, name: str, value: Any) -> None:
            if not name.startswith("_") and not hasattr(type(self), name):
                raise AttributeError(self._no_attribute(name), name=name, obj=self)
            super().__setattr__(name, value)

    def _no_attribute(self, name: str) -> str:
        """Say where else to look."""
        said = f"{type(self).__name__!r} object has no attribute {name!r}"
        settings = list(self._param_groups[0].plain) if "_param_groups" in vars(self) else []
        public = [known for known in dir(type(self)) if not known.startswith("_")]
        import difflib  # a millisecond

        meant = next(iter(difflib.get_close_matches(name, [*settings, *public], n=1)), None)
        if meant in settings and meant not in public:
            return f"{said}; hyperparameters are set by group: opt.param_groups[0][{meant!r}] = ..."
        return f"{said}; did you mean {meant!r}?" if meant else said
