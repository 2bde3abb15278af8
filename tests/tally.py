"""What a state machine tells of itself at the end of a run."""

STEPS = "state machine steps"
"""The property under which a test reports how many it took."""
