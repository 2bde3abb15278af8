"""Adapters that put a `ModelVm`'s guest time into an emulator. Each is imported by its own name, with its extra."""
