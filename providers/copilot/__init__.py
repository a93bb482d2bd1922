"""GitHub Copilot: logging in, the short-lived token, addresses, headers and usage.

`device_flow` is the login as a state machine without a clock, `credentials` the file that keeps
it, `github` asks GitHub, `tokens` keeps the token of Copilot's API fresh, `api` adds it to
requests, `headers`, `catalogue` and `usage` are pure. The engine is `providers.engines.copilot`.
"""
