"""Gradio's chat page, which speaks OpenAI's protocol: a tab for every model that the server lists, NAME:concise too."""

import os

import gradio as gr
from openai import OpenAI

url, key = os.environ["MEET_URL"] + "/v1/", os.environ.get("MEET_API_KEY", "none")
names = [model.id for model in OpenAI(base_url=url, api_key=key).models.list()]
gr.TabbedInterface([gr.load_chat(url, model=name, token=key) for name in names], names).launch()
