"""The HTTP door: a Quart-trio application in OpenAI's dialect and our own, served by Hypercorn.

`app` builds the application, `asgi` is the way of a request from the server to Quart and back,
`inference` opens requests at the dispatcher's door, `openai` and `native` are the dialects,
`problem` is the only place that turns errors into responses, `serving` runs it on sockets.
Nothing here knows how a provider is reached.
"""
