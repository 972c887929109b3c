"""What a server is started with. The command line is made from these fields."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ServingSettings(BaseModel):
    """Where to listen and how to start the engine: common to the MEET server and the plain one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="TCP port to listen on; 0 takes a free one")
    engine_args: tuple[str, ...] = Field(
        default=(), description="vLLM's own command-line arguments; they win over the server's defaults"
    )
    worker_start: Literal["spawn", "fork"] = Field(
        default="spawn",
        description="how the engine starts its processes: fork is quicker, and sound only with OMP_NUM_THREADS=1",
    )
    shutdown_grace_s: int = Field(
        default=10, ge=0, description="seconds that requests in flight are given to end when the server stops"
    )


class Settings(ServingSettings):
    """The MEET server."""

    bundle: Path = Field(description="folder of the bundle to serve")
    max_body_bytes: int = Field(
        default=32 << 20, ge=1024, description="largest request body, in bytes, that is read for a preference"
    )


class PlainSettings(ServingSettings):
    """vLLM's own app on a model folder, with no bundle and no controls."""

    model: Path = Field(description="folder of the model to serve")
    name: str = Field(description="what clients call the model")
