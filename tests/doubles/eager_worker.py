"""A real worker that verifies every draft, whatever the machine was measured to be worth: on a busy
one few drafts pay, and a test of accepted and refused ones would see neither."""

from __future__ import annotations

import sys

from workers.__main__ import main
from workers.speculation import choice

COMMAND = (sys.executable, "-m", "tests.doubles.eager_worker")

if __name__ == "__main__":
    choice.MARGIN = 0.0
    main()
