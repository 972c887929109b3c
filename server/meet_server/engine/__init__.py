"""The engine room: the only place that imports vLLM. Knows no HTTP of our own.

releases           every vLLM symbol that the rest uses, behind small functions
start              settings and bundle -> engine arguments -> a running engine
controlled_client  the seam: which control a request gets
proof              what is served is what was trained
plugin, cpu_lora   LoRA on CPUs, inside the engine's worker processes
"""
