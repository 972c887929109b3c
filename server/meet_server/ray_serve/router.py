"""Ray Serve's question of which replica gets a request, answered by `affinity` and, among the rest, by load."""

from __future__ import annotations

import random
from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from meet_server.ray_serve.affinity import Wanted, ranked


class PreferenceRouter(RequestRouter):  # type: ignore[misc]
    """Ranks replicas by what the first argument of a call, a `Wanted`, says.

    Where that says nothing, and where Ray finds that those it ranks take no more, the less busy of two drawn at
    random.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ranks of replicas, of which Ray takes the least busy of the first that has room."""
        where = _wanted(pending_request)
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # else Ray tries again without a pause
        by_id = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        loads = {
            unique_id: self.replica_queue_len_cache.get(replica.replica_id) or 0 for unique_id, replica in by_id.items()
        }
        preferred = [[by_id[each]] for each in ranked(where, loads)]
        rest = [by_id[each] for each in by_id if each not in where.avoid] or candidate_replicas
        return [*preferred, random.sample(rest, min(2, len(rest)))]


def _wanted(pending_request: Any) -> Wanted:
    first = pending_request.args[0] if pending_request is not None and pending_request.args else None
    return first if isinstance(first, Wanted) else Wanted()
