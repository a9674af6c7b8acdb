"""`python -m vitrail_server` is `vitrail-server`."""

from vitrail_server.cli import main

main()
