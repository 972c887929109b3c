"""The engine room: the only place that imports vLLM. Knows no HTTP of our own.

releases           every vLLM symbol that the server's side uses, behind small functions
start              settings and bundle -> engine arguments -> a running engine
controlled_client  the seam: which control a request gets
soft_prompts       the seam for soft prompts: virtual tokens in and out of prompts
observing          what is counted of a request
proof              what is served is what was trained
adapters           the controls and mixes that the engine holds, and who uses them
lora_settings      which of vLLM's LoRA settings suit a bundle
plugin             what is put into the engine's worker processes, and of that:
memory_adapters    mixes, made from the controls that the workers hold; mix_path names one to them
resident_lora      LoRA on CPUs without slots; its matrices are in resident_weights,
lora_kernel        and multiplied by a kernel of our own (lora_kernel.cpp), or without a compiler by
cpu_product        products of vLLM's
cpu_lora           LoRA on CPUs for the layers that need slots
cpu_kernels        norms and activations on CPUs by vLLM's kernels
cpu_seeds          a request's own seed on CPUs
banned_ids         virtual tokens are never produced
together           requests that belong together are read in one step
end_with_parent    no engine outlives its server
"""
