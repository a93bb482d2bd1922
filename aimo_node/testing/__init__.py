"""Fakes and suites that ship, for whoever writes an engine or tests a node.

`engine_contract` is the suite every engine passes, `fake_engine` an engine in memory that passes
it too, `upstream` a stand-in for OpenAI-compatible servers with faults that can be switched on.
Nothing here knows of `providers`.
"""
