"""The service: vLLM's own OpenAI-compatible app, in one process, with a preference chosen per request.

    access/        who may ask, for how much at once
    preferences/   a request's words -> names and strengths                    pure
    registry/      may this control come in, and which are loaded
    engine/        the only place that imports vLLM
    http/          where the words stand in a request, and the routes of our own
    app.py         all of it put together, on one screen

A room knows the rooms above it in this list and none below.
"""
