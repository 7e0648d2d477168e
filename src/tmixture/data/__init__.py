"""Data of any kind and size: opened by `open_rows`, read a block at a time, and made chunks on a device.

A further kind of file is one further module of this folder: a subclass of `Rows`, registered by `opens`.
"""

from tmixture.data.sources import Rows, open_rows, opens

__all__ = ["Rows", "open_rows", "opens"]
