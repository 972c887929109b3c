"""The root of every error that MEET raises on purpose, and the errors of the bundle format.

MeetError                 the user can mend it: the command line prints it on one line and exits 2
+-- BundleError           a bundle cannot be opened, checked or written
|   +-- BundleAltered     content differs from the digests in the manifest
+-- meet_training.errors.TrainingError
+-- meet_server.errors.ServerError
"""


class MeetError(Exception):
    """A mistake that the user can mend. The message names the field or file, the value, and what is allowed."""


class BundleError(MeetError):
    """A bundle cannot be opened, checked or written."""


class BundleAltered(BundleError):
    """A bundle's content is not what its manifest says."""
