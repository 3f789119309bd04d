# SPDX-License-Identifier: Apache-2.0
"""A reader written from docs/format.md alone: it takes its numbers from the tables of that page."""

import re
from pathlib import Path

import numpy as np

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "format.md").read_text()
NUMPY = {"u8": "u1", "s8": "i1", "u16": "u2", "s16": "i2", "u32": "u4", "s32": "i4",
         "u64": "u8", "s64": "i8", "f16": "f2", "f32": "f4", "f64": "f8"}  # fmt: skip


def table(heading):
    """The rows of the table below a heading, as dictionaries."""
    section = re.search(rf"^#+ {heading}\n(.*?)(?=^#|\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert section, f"no section {heading}"
    lines = [line for line in section[1].splitlines() if line.startswith("|")]
    cells = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


TYPES = {int(row["number"]): row["dtype"] for row in table("Types")}


def crc32c(data, crc=0):
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc = CRC[(crc ^ byte) & 255] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def crc_of_byte(value):
    for _ in range(8):
        value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value


CRC = [crc_of_byte(byte) for byte in range(256)]


def fields(data, heading):
    """The fields of header or entry; the table must cover it without hole or overlap."""
    found, end = {}, 0
    for row in table(heading):
        offset, size = int(row["offset"]), int(row["bytes"])
        assert offset == end, row
        end += size
        raw = data[offset:end]
        kind, _, count = row["type"].partition(" x ")
        if kind == "bytes":
            found[row["field"]] = raw
            continue
        values = np.frombuffer(raw, "<" + NUMPY[kind]).tolist()
        assert len(values) == int(count or 1), row
        found[row["field"]] = values if count else values[0]
    assert end == len(data)
    return found


def read(path):
    """The arrays of a container and its checksum; every rule of the page asserted."""
    data = path.read_bytes()
    header = fields(data[:64], "Header")
    magic = next(row for row in table("Header") if row["field"] == "magic")["contents"]
    assert header["magic"] == bytes.fromhex(re.match(r"[0-9a-f ]+", magic)[0])
    assert (header["version"], header["file_bytes"]) == (1, len(data))
    assert header["table_bytes"] == 128 * header["n_arrays"]
    assert not any(header["reserved"])
    end = 64 + header["table_bytes"]
    assert header["checksum"] == crc32c(data[:60] + data[64:end])

    arrays = {}
    for place in range(64, end, 128):
        entry = fields(data[place : place + 128], "Entry")
        name = re.fullmatch(rb"([a-z0-9_]{1,47})\0+", entry["name"])[1].decode()
        dtype, rank = np.dtype("<" + NUMPY[TYPES[entry["dtype"]]]), entry["rank"]
        assert not any(entry["reserved"] + entry["reserved_end"])
        assert 1 <= rank <= 4
        assert not any(entry["shape"][rank:])
        shape = entry["shape"][:rank]
        begin = -(-end // 64) * 64
        assert entry["offset"] == begin
        assert not any(data[end:begin])
        end = begin + entry["bytes"]
        payload = data[begin:end]
        assert entry["checksum"] == crc32c(payload)
        assert name not in arrays
        arrays[name] = np.frombuffer(payload, dtype).reshape(shape)
    assert -(-end // 64) * 64 == len(data)
    assert not any(data[end:])
    return arrays, header["checksum"]


def meta(arrays, heading):
    rows = table(heading)
    assert [int(row["place"]) for row in rows] == list(range(len(arrays["meta"])))
    return dict(zip((row["number"] for row in rows), arrays["meta"].tolist(), strict=True))


def signs(seed, n):
    """-1 and 1 from xoshiro256**."""
    mask = 2**64 - 1

    def split_mix(state):
        while True:
            state = (state + 0x9E3779B97F4A7C15) & mask
            z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
            yield z ^ (z >> 31)

    def rotate_left(x, k):
        return ((x << k) | (x >> (64 - k))) & mask

    source = split_mix(next(split_mix(seed)))
    s = [next(source) for _ in range(4)]
    drawn = []
    for _ in range(n):
        drawn.append(-1 if (rotate_left(s[1] * 5 & mask, 7) * 9 & mask) >> 63 else 1)
        t = s[1] << 17 & mask
        s[2] ^= s[0]
        s[3] ^= s[1]
        s[1] ^= s[2]
        s[0] ^= s[3]
        s[2] ^= t
        s[3] = rotate_left(s[3], 45)
    return np.array(drawn)


def rotation_matrix(padded_dim, seed):
    """Rows times this matrix are rotated rows."""
    blocks = [1 << bit for bit in reversed(range(13)) if padded_dim >> bit & 1]
    both = signs(seed, 2 * padded_dim)
    matrix = np.eye(padded_dim)
    for sizes, round_signs in ((blocks, both[:padded_dim]), (blocks[::-1], both[padded_dim:])):
        hadamard, at = np.zeros((padded_dim, padded_dim)), 0
        for size in sizes:
            bits = np.arange(size)
            parity = [[bin(i & j).count("1") % 2 for j in bits] for i in bits]
            hadamard[at : at + size, at : at + size] = (1 - 2 * np.array(parity)) / np.sqrt(size)
            at += size
        matrix = matrix * round_signs @ hadamard
    return matrix


def levels(packed, nbits):
    n, n_bytes = packed.shape
    p = 8 // nbits
    out = np.zeros((n, n_bytes * p), int)
    for w in range(n_bytes // 4):
        for j in range(4):
            for s in range(p):
                byte = packed[:, 4 * w + j].astype(int)
                out[:, (w * p + s) * 4 + j] = (byte >> (nbits * s)) & ((1 << nbits) - 1)
    return out


def decode(arrays, trained, nbits):
    """Tokens in rotated space."""
    fine = trained["child_offsets"][arrays["parents"]].astype(int) + arrays["children"]
    centroids = trained["fine"][fine] * float(trained["scales"][1])
    step = arrays["steps"].astype(float)[:, None]
    level = levels(arrays["codes"], nbits)
    factors, residual = "multipliers", step * (level - (2**nbits - 1) / 2)
    if "plane" in arrays:
        factors = "plane_multipliers"
        found = re.search(r"step / (\d+) \* \((\d+) \* level \+ plane level - (\d+) / 2\)", PAGE)
        finer, ratio, middle = map(int, found.groups())
        residual = step / finer * (ratio * level + levels(arrays["plane"], 4) - middle / 2)
    grids = re.findall(r"([0-9.]+) \+ u / (\d+)", PAGE)  # of few levels, then of many
    least, parts = map(float, grids[nbits == 8 or "plane" in arrays])
    return (least + arrays[factors] / parts)[:, None] * (centroids + residual)
