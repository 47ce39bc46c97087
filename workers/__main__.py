"""`python -m workers`: one worker process, started by the router."""

from workers.worker import main

main()
