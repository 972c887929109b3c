"""The one base class of what the training package raises on purpose."""

from meet_bundle.errors import MeetError


class TrainingError(MeetError):
    """Data, a configuration or a base model that training cannot use."""
