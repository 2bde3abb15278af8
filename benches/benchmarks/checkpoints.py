"""A checkpoint's bytes, made and read, beside the general encoders on the same columns."""

from __future__ import annotations

import pickle

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


class Siblings:
    params = columns.VCPUS
    param_names = ("vcpus",)

    def setup(self, vcpus: int) -> None:
        import cbor2

        self.arrays = columns.arrays(columns.checkpoint(vcpus))
        self.strings = {name: column.tobytes() for name, column in self.arrays.items()}
        self.pickled = pickle.dumps(self.arrays, protocol=5)
        self.cbor = cbor2.dumps(self.strings)
        self.dumps, self.loads = cbor2.dumps, cbor2.loads

    def time_pickle_dumps(self, vcpus: int) -> None:
        pickle.dumps(self.arrays, protocol=5)

    def time_pickle_loads(self, vcpus: int) -> None:
        pickle.loads(self.pickled)

    def time_cbor2_dumps(self, vcpus: int) -> None:
        self.dumps(self.strings)

    def time_cbor2_loads(self, vcpus: int) -> None:
        self.loads(self.cbor)

    def track_pickled_size(self, vcpus: int) -> int:
        return len(self.pickled)

    track_pickled_size.unit = "bytes"  # type: ignore[attr-defined]
