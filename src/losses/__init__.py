"""The short name of `tmixture.losses`: the same objects, where no `losses.py` of your own shadows it."""

from tmixture.losses import *  # noqa: F403
from tmixture.losses import __all__  # noqa: F401
