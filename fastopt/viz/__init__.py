"""Pictures and pages that show what optimizers do: ``fastopt.viz``."""

from fastopt.viz.race import Race, race
from fastopt.viz.surfaces import SURFACES, Surface, minibatches, surface

__all__ = ["SURFACES", "Race", "Surface", "minibatches", "race", "surface"]
