"""Makes the golden vectors of a family: python -m tests.golden.make_family FAMILY [CLASS ...].

It never imports fastopt. Two oracles of a case may differ by 1e-12 in the parameters and 5e-12 in
the state; a file is refused otherwise, as README.md says.
"""

import sys
from importlib import import_module
from importlib.metadata import version

from .kind_files import make_file_of
from .stored_inputs import stored_inputs


def main() -> None:
    """Make the files of the classes that are named, or of all in the family."""
    family, *wanted = sys.argv[1:]
    module = import_module(f"tests.golden.families.{family}")
    folder = f"{module.FOLDER}/" if module.FOLDER else ""
    inputs = stored_inputs(module.FOLDER)
    versions = {name: version(name) for name in (*module.PACKAGES, "numpy")}
    for optimizer in wanted or module.CASES:
        cases, oracles = module.CASES[optimizer], module.ORACLES[optimizer]
        make_file_of(f"{folder}{optimizer.lower()}", cases, inputs, oracles, versions)


if __name__ == "__main__":
    main()
