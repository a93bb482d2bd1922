"""OpenAI's dialect, as an upstream speaks it: streams, whole answers, embeddings, refusals."""
