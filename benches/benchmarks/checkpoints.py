"""A checkpoint's bytes, made and read."""

from __future__ import annotations

from . import columns


class Bytes:
    params = columns.VCPUS
    param_names = ("vcpus",)

    def setup(self, vcpus: int) -> None:
        self.checkpoint = columns.checkpoint(vcpus)
        self.decode = type(self.checkpoint).from_bytes
        self.encoded = self.checkpoint.to_bytes()

    def time_to_bytes(self, vcpus: int) -> None:
        self.checkpoint.to_bytes()

    def time_from_bytes(self, vcpus: int) -> None:
        self.decode(self.encoded)

    def track_size(self, vcpus: int) -> int:
        return len(self.encoded)

    track_size.unit = "bytes"  # type: ignore[attr-defined]
