"""Parts of the vllm engine: its settings, its process, what that prints, offers and measures.

`providers.engines.vllm` puts them together. The node never imports vLLM itself: that runs in a
process of its own (`server`), mostly by another interpreter in an environment of its own.
"""
