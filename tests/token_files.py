"""Token files for tests."""

import struct

import numpy


def write_tokens(prefix, ids, documents=1):
    """A Megatron indexed data set of 16-bit ids, in documents of one length."""
    numpy.asarray(ids, dtype="<u2").tofile(f"{prefix}.bin")
    length = len(ids) // documents
    with open(f"{prefix}.idx", "wb") as index:
        index.write(b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, documents, documents + 1))
        index.write(struct.pack(f"<{documents}i", *[length] * documents))
        index.write(struct.pack(f"<{documents}q", *range(0, 2 * len(ids), 2 * length)))
        index.write(struct.pack(f"<{documents + 1}q", *range(documents + 1)))
    return prefix
