"""The words that data are opened, split and varied by. Importing this module brings neither torch nor numpy along."""

from __future__ import annotations

SPLITS = OFFICIAL, EIGHTY_TWENTY = "official", "80-20"
"""What can be asked for: the published training and test parts, or a drawn test part of 20 % of all images."""

AUGMENTATIONS = ("inception", "light", "crop", "none")
"""How training images are varied; see `memtok.data.training_transform`."""

ON_BAD_IMAGE = ("skip", "fail")
"""What to do about an image that cannot be read: leave it out and say so, or raise."""
