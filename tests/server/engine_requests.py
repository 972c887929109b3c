"""Requests to a running server's engine at the seam where its app asks it, with no HTTP between."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from running_server import Server

from meet_server.engine import releases
from meet_server.preferences.resolve import Mix

_NUMBERS = itertools.count()


class Asker:
    """Asks the engine of one server for greedy replies under mixes."""

    def __init__(self, server: Server) -> None:
        self.engine, self.live = server.engine, server.app.state.served.live

    def control(self, mix: Mapping[str, float]) -> Any:
        return self.live.lookup(Mix(tuple(mix.items()))).control

    async def reply(
        self, prompt: Sequence[int], mix: Mapping[str, float], num_tokens: int, leave_after: int | None = None
    ) -> list[int]:
        """Token ids of the reply; the client leaves once it has `leave_after` of them."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        params = SamplingParams(
            temperature=0, max_tokens=num_tokens, ignore_eos=True, output_kind=RequestOutputKind.DELTA
        )
        token_ids: list[int] = []
        with self.engine.applying(self.control(mix)):
            outputs = self.engine.generate(releases.token_prompt(prompt), params, f"asked-{next(_NUMBERS)}")
        try:
            async for output in outputs:
                token_ids += output.outputs[0].token_ids
                if leave_after is not None and len(token_ids) >= leave_after:
                    break
        finally:
            await outputs.aclose()
        return token_ids
