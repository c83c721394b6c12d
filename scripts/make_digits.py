"""Builds src/memtok/assets/digits.npz, the bundled handwritten digits, from scikit-learn's copy of them.

Run from the root of the checkout: `python scripts/make_digits.py`. scikit-learn is needed for this only.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

TARGET = Path("src/memtok/assets/digits.npz")
TEST_SHARE = 5  # one image in five of each digit is kept for the test
SEED = 0


def main() -> None:
    """Writes the file and says what is in it."""
    digits = load_digits()
    images = digits.images.astype(np.uint8)  # (1797, 8, 8), 0 (paper) to 16 (ink)
    labels = digits.target.astype(np.uint8)
    assert np.array_equal(images, digits.images), "expected whole numbers"
    generator = np.random.default_rng(SEED)
    test = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        members = np.flatnonzero(labels == digit)
        test[generator.permutation(members)[: round(len(members) / TEST_SHARE)]] = True
    np.savez_compressed(TARGET, images=images, labels=labels, test=np.packbits(test))
    print(f"{TARGET}: {len(labels)} digits, {test.sum()} of them for the test, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
