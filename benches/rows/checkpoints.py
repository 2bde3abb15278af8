"""Checkpoints of many VMs as bytes and back, beside a copy with the same checksum, and beside pickle with it."""

from __future__ import annotations

from benchmarks.operations import decoding, encoding
from measure import Ratio, at_most

VCPUS = 10_000
ROWS = (
    Ratio(
        "10 000 vCPUs to bytes, beside a copy + CRC",
        lambda: encoding(VCPUS, beside_copy=True),
        at_most(3.0),
        elements=VCPUS,
    ),
    Ratio("10 000 vCPUs to bytes, beside pickle + CRC", lambda: encoding(VCPUS), at_most(1.0), elements=VCPUS),
    Ratio(
        "10 000 vCPUs from bytes, beside a copy + CRC",
        lambda: decoding(VCPUS, beside_copy=True),
        at_most(3.0),
        elements=VCPUS,
    ),
    Ratio("10 000 vCPUs from bytes, beside pickle + CRC", lambda: decoding(VCPUS), at_most(1.0), elements=VCPUS),
)
