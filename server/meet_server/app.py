"""The whole composition: a bundle, an engine, its controls, vLLM's own app, and our wrapper inside it."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.middleware import Middleware

from meet_bundle import Bundle, LoraControls, Manifest, open_bundle
from meet_server.engine import lora_settings, start
from meet_server.engine.controlled_client import ControlledEngine, list_models, model_cards
from meet_server.engine.proof import prove
from meet_server.engine.soft_prompts import SoftPromptEngine
from meet_server.http.health import health_router
from meet_server.http.model_routes import model_router
from meet_server.http.page import page_router
from meet_server.http.preference_field import PreferenceField
from meet_server.http.preference_routes import preference_router
from meet_server.preferences.resolve import Resolver
from meet_server.registry.admission import check_lora, model_shapes
from meet_server.registry.live import LiveControls
from meet_server.registry.soft_prompt_admission import check_soft_prompts
from meet_server.registry.soft_prompts import LiveSoftPrompts
from meet_server.settings import Settings


def create_app(settings: Settings) -> FastAPI:
    """The MEET server for one bundle. Its lifespan starts the engine, and sets what `run` reads: `state.engine`,
    vLLM's engine client, and `state.example`, the fields of our own in an example request.

    Entering the lifespan raises MeetError, on one line, for a bundle or a control that cannot be served.
    """

    @asynccontextmanager
    async def lifespan(outer: FastAPI) -> AsyncIterator[None]:
        start.prepare_environment()
        bundle = open_bundle(settings.bundle)
        admit(bundle)
        args = start.bundle_arguments(bundle, settings.engine_args)
        first_id = bundle.manifest.first_virtual_id
        with start.running_engine(args, worker_start=settings.worker_start, first_banned_id=first_id) as raw:
            engine, live = controlled(bundle.manifest, raw, args)
            await load_and_prove(bundle, engine, live)
            inner = await compose(bundle.manifest, engine, live, args, max_body_bytes=settings.max_body_bytes)
            async with inner.router.lifespan_context(inner):  # a mounted app's own does not run
                outer.state.engine, outer.state.live = engine, live
                outer.state.example = {"preference": bundle.manifest.preferences[0].name}
                outer.mount("/", inner)
                yield

    return FastAPI(lifespan=lifespan, openapi_url=None)


async def compose(
    manifest: Manifest, engine: ControlledEngine, live: LiveControls, args: Namespace, *, max_body_bytes: int
) -> FastAPI:
    """vLLM's own app on a running engine, with our routes and our wrapper in it."""
    names, resolver = args.served_model_name, Resolver(manifest)
    app = await start.vllm_app(engine, args)
    if isinstance(engine, SoftPromptEngine):
        engine.follow_beams(app.state)
    models = app.state.openai_serving_models
    list_models(models, names, iter(live))
    app.include_router(model_router(lambda: model_cards(models)))
    app.include_router(preference_router(manifest, resolver, live))
    app.include_router(health_router(lambda: engine.is_dead))
    app.include_router(page_router())
    wrap(
        app,
        PreferenceField,
        resolver=resolver,
        live=live,
        applying=engine.applying,
        names=names,
        max_body_bytes=max_body_bytes,
    )
    return app


def controlled(manifest: Manifest, raw: Any, args: Namespace) -> tuple[ControlledEngine, LiveControls]:
    """The engine client that applies the bundle's kind of control, and the list of what it has loaded."""
    controls, first_id = manifest.controls, manifest.first_virtual_id
    if isinstance(controls, LoraControls) or first_id is None:
        engine = ControlledEngine(raw, lora_settings.max_mixes(args, len(manifest.preferences)))
        return engine, LiveControls(start.max_parts(manifest, args))
    return SoftPromptEngine(raw, controls.placement, first_id), LiveSoftPrompts(manifest)


def admit(bundle: Bundle) -> None:
    """Raises ControlRefused for the first control of the bundle that must not reach the engine."""
    controls = bundle.manifest.controls
    if not isinstance(controls, LoraControls):
        check_soft_prompts(bundle)
    else:
        shapes = model_shapes(bundle.model_path)
        for preference in bundle.manifest.preferences:
            check_lora(preference.name, bundle.path / preference.path, controls, shapes)


async def load_and_prove(bundle: Bundle, engine: ControlledEngine, live: LiveControls) -> None:
    """Loads every control, proves all of them, and only then publishes them."""
    controls = [(live.number(p, bundle.path / p.path), p) for p in bundle.manifest.preferences]
    for control, _ in controls:
        await engine.load(control)
    await prove(engine, controls)
    for control, _ in controls:
        live.publish(control)


def wrap(app: FastAPI, middleware: type[PreferenceField], **options: object) -> None:
    """Puts a middleware innermost: behind vLLM's own authentication, CORS and request ids.

    `build_app` returns with its stack built, so `add_middleware` would raise; this builds it again, as
    vLLM's SageMaker bootstrap does.
    """
    app.user_middleware.append(Middleware(middleware, **options))  # type: ignore[arg-type]
    app.middleware_stack = app.build_middleware_stack()
