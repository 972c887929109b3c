"""The engine room: the only place that imports vLLM. Knows no HTTP of our own.

releases           every vLLM symbol that the rest uses, behind small functions
start              settings and bundle -> engine arguments -> a running engine
controlled_client  the seam: which control a request gets
soft_prompts       the seam for soft prompts: virtual tokens in and out of prompts
proof              what is served is what was trained
plugin, cpu_lora   LoRA on CPUs, inside the engine's worker processes
banned_ids         virtual tokens are never produced, likewise
"""
