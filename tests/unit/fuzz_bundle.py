"""Damaged bundles, one after another, in a process under limits: python -m tests.unit.fuzz_bundle FILE LAST SEED N.

Each is written to LAST before it is opened, so that what crashed the process can be looked at. Prints how many loaded
and how many were refused; anything else ends it with a traceback.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import numpy as np

from pipeline import model
from pipeline.bundle import from_bytes
from pipeline.errors import ManifestError
from tests import zoo

MAX_S = 20.0


def damaged(good: bytes, rng: np.random.Generator) -> bytes:
    data = bytearray(good)
    # Half the damage to what is structure and manifest: most of a file is weights.
    dense = [i for i in (0, len(good) - 2500) if i >= 0]
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(0, len(data)))
        if rng.random() < 0.7:
            at = min(len(data) - 1, int(rng.choice(dense)) + int(rng.integers(0, 2500)))
        kind = rng.integers(0, 7)
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            data[at] = int(rng.choice([0, 1, 2, 0x7F, 0x80, 0xFF]))
        elif kind == 2:
            data[at:at] = rng.bytes(int(rng.integers(1, 9)))
        elif kind == 3:
            del data[at : at + int(rng.integers(1, 9))]
        elif kind == 4 and rng.random() < 0.3:
            del data[at:]
        elif kind == 5:
            length = int(rng.integers(1, 200))
            data[at:at] = data[at : at + length]
        else:
            data[at : at + 4] = int(rng.choice([0, 2**31 - 1, 2**32 - 1, 0x7F800000, 0x7FC00000])).to_bytes(4, "little")
        if not data:
            return b""
    return bytes(data)


def main(source: Path, last: Path, seed: int, count: int) -> None:
    model.MAX_STEP_S = model.MAX_LOAD_S = 5.0
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
    good = source.read_bytes()
    loaded = refused = 0
    for case in range(count):
        data = damaged(good, np.random.default_rng([seed, case]))
        last.write_bytes(data)
        began_s = time.monotonic()
        try:
            bundle = from_bytes(data, "damaged")
        except ManifestError as error:
            if len(str(error)) > 5000:
                raise
            refused += 1
        else:
            loaded += 1
            samples = zoo.signal(bundle.manifest.input, min(4000, 40 * bundle.frontend.block * bundle.model.block))
            once, again = bundle.forward(samples), from_bytes(data, "damaged").forward(samples)
            assert once[1].tobytes() == again[1].tobytes()
        assert time.monotonic() - began_s < MAX_S, f"case {case} of seed {seed} took too long"
    print(loaded, refused)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
