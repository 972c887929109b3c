"""A server on this machine is asked without a proxy, which would look for it on its own machine. Sends nothing."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from openai import DefaultAsyncHttpxClient, DefaultHttpxClient


def direct(url: str) -> dict[str, Any]:
    """Options of `openai.OpenAI` for a server at `url`: where that is this machine, no proxy of the environment's."""
    mounts = _mounts(url)
    return {"http_client": DefaultHttpxClient(mounts=mounts)} if mounts else {}


def direct_async(url: str) -> dict[str, Any]:
    """As `direct`, for `openai.AsyncOpenAI`."""
    mounts = _mounts(url)
    return {"http_client": DefaultAsyncHttpxClient(mounts=mounts)} if mounts else {}


def _mounts(url: str) -> dict[str, None]:
    """The route past all proxies to the url's host, and to no other: what else the environment says still holds."""
    try:
        host = urlsplit(url).hostname or ""
        on_loopback = host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # another name, or no address, which the SDK refuses
        return {}
    return {f"all://[{host}]" if ":" in host else f"all://{host}": None} if on_loopback else {}
