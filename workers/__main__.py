"""`python -m workers`: one worker process, started by the router or forked for it."""

from __future__ import annotations

import argparse
import faulthandler
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tgi_async.wire.channel import WorkerChannel
from tgi_async.wire.messages import PLACE_TAKEN
from workers.build_cache import use_scratch
from workers.parent_death import die_with_parent

PEER_LOST_SECONDS = 15.0
"""How long a worker that lost another rank waits for the router to end it. That is longer than the
router takes to find a whole node silent, even when it is busy: requests would be blamed for it."""


def main(words: Sequence[str] | None = None) -> None:
    """Run a worker; `words` are its arguments where it was not started by a command."""
    parser = argparse.ArgumentParser(prog="python -m workers", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where the sockets are")
    parser.add_argument("--epoch", type=int, required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--router", type=int, required=True, help="process that started this one")
    arguments = parser.parse_args(words)
    die_with_parent(arguments.router)
    # The router decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # The router passes on who asks what all processes are doing.
    faulthandler.register(signal.SIGUSR1)
    use_scratch(arguments.folder)
    channel = WorkerChannel(arguments.folder, arguments.epoch, arguments.rank)
    try:
        # Takes seconds: torch. The lines above must not wait for it.
        from workers.ranks import PeerLost, PlaceTaken
        from workers.worker import Worker

        try:
            Worker(channel, arguments.rank).run()
        except PeerLost as lost:
            # The dead rank is to be found first, as it has the reason.
            time.sleep(PEER_LOST_SECONDS)
            sys.exit(str(lost))
        except PlaceTaken as taken:
            print(taken, file=sys.stderr)
            sys.exit(PLACE_TAKEN)
    finally:
        channel.close()


if __name__ == "__main__":
    main()
