"""A worker process like `python -m workers`, whose rank 1 fails while it loads, or in a step.

How is the first argument: "refused" says why, "raised" does not, "killed" is gone without a word,
"hung" never answers. "stuck" loads, and takes no part in any step.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from workers import __main__ as worker_process


def main() -> None:
    how = sys.argv.pop(1)
    if "--rank=1" in sys.argv and how == "stuck":
        from workers.tensor_parallel import FollowerRank

        FollowerRank.run = lambda self: time.sleep(1000)  # type: ignore[method-assign]
    elif "--rank=1" in sys.argv:
        import workers.worker
        from workers.errors import UnsupportedModel

        def load(*_: Any, **__: Any) -> Any:
            if how == "refused":
                raise UnsupportedModel("rank 1 does not like it")
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "hung":
                time.sleep(1000)
            raise RuntimeError("rank 1 broke")

        workers.worker.load = load  # type: ignore[attr-defined]  # where it is called
    worker_process.main()


if __name__ == "__main__":
    main()
