"""Engines: the programs behind a provider, each an adapter to `aimo_node.ports.engine`.

`registry` finds an engine by name, `engines/` holds one file per engine, the rest is plumbing they
share: child processes (`supervisor`, `process`), HTTP (`http_client`, `unix_client`) and the
OpenAI dialect (`openai_stream`, `openai_dialect`). Nothing here knows of mesh, edge or dispatch.
"""
