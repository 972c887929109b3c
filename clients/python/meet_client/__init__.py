"""Asks a MEET server for a preference: a thin layer on the `openai` SDK.

    client = MeetClient("http://127.0.0.1:8000")
    client.preferences()                                   what the server knows
    client.chat("Why is the sky blue?", preference="concise").text
    client.stream("Why is the sky blue?", preference={"concise": 0.7, "formal": -0.5})   piece by piece, a mix
    client.chat_each("Why is the sky blue?", ["concise", "detailed", None])   a reply for each, from one request
    client.openai                                          the SDK's own client, for all the rest

Errors are those of the SDK: `openai.APIConnectionError`, `openai.APIStatusError` and their kin.
"""

from meet_client.client import AsyncMeetClient, MeetClient
from meet_client.reply import AsyncReplyStream, Reply, ReplyStream
from meet_client.words import DEFAULT, Calibration, Default, Preference, PreferenceValue

__all__ = [
    "DEFAULT",
    "AsyncMeetClient",
    "AsyncReplyStream",
    "Calibration",
    "Default",
    "MeetClient",
    "Preference",
    "PreferenceValue",
    "Reply",
    "ReplyStream",
]
