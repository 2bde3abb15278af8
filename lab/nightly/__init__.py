"""A night: every part that is too long for a submission, and one result file of all."""
