import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weights.errors import CorruptCheckpointError, NotACheckpointError, UnsupportedCheckpointError
from weights.sorted_table import decode_varint, encode_varint, mask_checksum, read_table, write_table

keys = st.binary(max_size=12) | st.sampled_from([b"model/a", b"model/ab", b"model/abc/d", b"model/b"])


@given(st.dictionaries(keys, st.binary(max_size=40), min_size=1, max_size=70), st.integers(1, 40))
def test_a_table_reads_back_whatever_its_blocks(entries, entries_per_block):
    assert read_table(write_table(entries.items(), entries_per_block=entries_per_block)) == dict(
        sorted(entries.items())
    )


@given(st.integers(0, 2**64 - 1))
def test_a_varint_reads_back(number):
    assert decode_varint(encode_varint(number), 0) == (number, len(encode_varint(number)))


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 9, b"\xff" * 11, b"\xff" * 9 + b"\x7f"])
def test_a_broken_varint_is_refused(data):
    with pytest.raises(CorruptCheckpointError):
        decode_varint(data, 0)


def test_every_single_flipped_bit_is_found():
    data = write_table([(f"key{number:02d}".encode(), bytes([number])) for number in range(20)], entries_per_block=7)
    for position in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            with pytest.raises((CorruptCheckpointError, NotACheckpointError, UnsupportedCheckpointError)):
                read_table(bytes(damaged))


def test_every_truncation_is_found():
    data = write_table([(b"a", b"1"), (b"b", b"2")])
    for length in range(len(data)):
        with pytest.raises((CorruptCheckpointError, NotACheckpointError)):
            read_table(data[:length])


def test_a_compressed_block_is_refused_by_name():
    import google_crc32c

    data = bytearray(write_table([(b"a", b"1")]))
    size = data.index(b"\0\0\0\0\x01\0\0\0") + 8  # the first block ends with its one restart point
    data[size] = 1
    data[size + 1 : size + 5] = struct.pack("<I", mask_checksum(google_crc32c.value(bytes(data[: size + 1]))))
    with pytest.raises(UnsupportedCheckpointError, match="snappy"):
        read_table(bytes(data))
