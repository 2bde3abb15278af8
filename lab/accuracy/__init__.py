"""The accuracy of a restore, as the guest itself reads it: docs/accuracy.md."""
