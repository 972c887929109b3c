"""The bundle: the folder that training writes and the server reads. Never imports torch.

open_bundle(path) -> Bundle        checks format version and digests, says exactly what is wrong
writing_bundle(path) -> folder     a temporary folder that becomes the bundle in one rename
clean_up(path)                     removes what a killed writer of that bundle left
"""

from meet_bundle.bundle import Bundle, open_bundle, recalibrated, seal, writing_bundle
from meet_bundle.errors import BundleAltered, BundleError, MeetError
from meet_bundle.leftovers import clean_up
from meet_bundle.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    BaseModelSource,
    Calibration,
    LoraControls,
    Manifest,
    Preference,
    Probe,
    SoftPromptControls,
)

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST_NAME",
    "BaseModelSource",
    "Bundle",
    "BundleAltered",
    "BundleError",
    "Calibration",
    "LoraControls",
    "Manifest",
    "MeetError",
    "Preference",
    "Probe",
    "SoftPromptControls",
    "clean_up",
    "open_bundle",
    "recalibrated",
    "seal",
    "writing_bundle",
]
