"""OpenAI's dialect: Chat Completions and the list of models.

Start with `chat` (the routes), then `schemas` (what is accepted) and `chunks` (what goes out).
"""
