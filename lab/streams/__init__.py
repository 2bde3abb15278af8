"""Migration streams of a real QEMU, as goldens for `guestclock.snapshots`."""
