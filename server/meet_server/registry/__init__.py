"""Which controls there are, beside those of the bundle. Knows no HTTP, and the engine as a few functions.

admission, soft_prompt_admission   whether a control may come near the engine
live, soft_prompts                 which are loaded
mixes                              which mixes of them the engine keeps
catalogue                          what requests may ask for
state                              what was changed of the bundle's preferences                pure
record                             a control on its way here: its files, and checks of them
store                              state and contents on disk, durable and shared
changing                           changes while serving
"""
