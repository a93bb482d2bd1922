"""Values with meaning and no behaviour beyond validation.

Start with `ids`, then `answer` (what an engine produces) and `models` (what a provider offers).
"""
