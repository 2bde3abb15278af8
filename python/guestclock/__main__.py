"""`python -m guestclock`."""

from guestclock.cli import main

if __name__ == "__main__":
    main()
