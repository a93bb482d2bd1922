"""Anthropic's Messages API, translated from and to the mesh's canonical form; sans-I/O.

`dialect` holds the tables both directions share, `request` and what it calls translate a request,
`reader` an answer's events, `stream` and `whole` its two forms on the wire, `refusals` errors,
`catalogue` the list of models. Start reading in `request`.
"""
