"""Turning a request's words into preferences and strengths. Pure: no HTTP, no engine, no torch.

words      one place's words -> what was asked there, or "not said"
resolve    what was asked, in all places, and the manifest -> the mix to apply
"""
