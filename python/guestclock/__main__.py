"""`python -m guestclock`."""

from guestclock.cli import main

main()
