"""Turning a request's words into preferences and strengths. Pure: no HTTP, no engine, no torch.

words      one place's words -> what was asked there, or "not said"
mix        strengths as they are applied, the name of a mix by content, its arithmetic
resolve    what was asked, in all places, and the manifest -> the mix to apply
"""
