"""One bundle on several replicas by Ray Serve: `serve run meet_server.ray_serve:build bundle=… replicas=2`.

    application     settings -> a Ray Serve application; and `meet serve --ray`
    front           what Ray's proxies ask: reads the preference of a request and relays it to a replica
    router          which replica, by Ray's protocol
    affinity        which replica, purely
    replica         the whole MEET server with an engine of its own, behind Ray instead of a socket

The only place that imports Ray, and it is not needed for anything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve import Application


def build(args: Mapping[str, Any]) -> Application:
    """What `serve run` and the `import_path` of Ray's configuration files name.

    `args` are settings by name (docs/OPERATING.md), those of `ray` without that word too; `config` names a file of
    settings. Raises ServerError for what is no setting.
    """
    from meet_server.ray_serve.application import application, settings_of

    return application(settings_of(args))
