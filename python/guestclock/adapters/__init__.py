"""Adapters that put a `Vm`'s guest time into an emulator. Each is imported by its own name and needs its own extra."""
