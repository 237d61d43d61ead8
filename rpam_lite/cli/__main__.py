"""`python -m rpam_lite.cli` is `rpam`."""

from rpam_lite.cli import main

main()
