"""What all tests share."""

from hypothesis import settings

# The same examples in every run, so that a run that failed can be repeated, and none fails by luck.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
