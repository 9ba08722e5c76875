"""``python -m fastopt``."""

from fastopt.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
