"""The model and a kernel side by side: docs/differential.md says what is compared, and how."""
