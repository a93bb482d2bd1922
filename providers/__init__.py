"""Engines: the programs behind a provider, each an adapter to `aimo_node.ports.engine`.

`registry` finds an engine by name, `engines/` holds one file per engine, the rest is plumbing they
share: programs they start (`children/`), HTTP (`http/`), somebody else's servers (`upstreams/`)
and the dialects. Nothing here knows of mesh, edge or dispatch.
"""
