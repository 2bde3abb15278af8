"""The model and a kernel side by side: lab/README.md says what is compared, and how."""
