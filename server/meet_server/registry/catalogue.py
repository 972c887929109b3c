"""What requests may ask for now: the bundle's manifest with all that was changed of it, and the resolver of that."""

from __future__ import annotations

from meet_bundle import Manifest
from meet_server.preferences.resolve import Resolver


class Catalogue:
    """One manifest and its resolver, replaced together. A request looks at it once."""

    def __init__(self, manifest: Manifest) -> None:
        self.replace(manifest)

    def replace(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.resolver = Resolver(manifest)
