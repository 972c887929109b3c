"""The attributes of a reply, by the name that evaluation uses; `data` measures with the same ones.

They live a room below, because data is chosen by measurement and may not know evaluation.
"""

from meet_training.data.attributes import ATTRIBUTES, Attribute, MeasuredBy, Summary

__all__ = ["ATTRIBUTES", "Attribute", "MeasuredBy", "Summary"]
