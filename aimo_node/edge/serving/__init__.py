"""HTTP serving: Quart on Hypercorn's stream and WebSocket layer, over a connection of our own.

Hypercorn 0.18 turns requests into ASGI calls (`HTTPStream`, `WSStream`). Its socket and HTTP/1.1
layers are replaced, because that is where it hangs on a consumer that does not read, forgets its
timers and costs most per chunk. Start reading at `server.py` (listening, draining), then
`connection.py` (one socket), `http1.py` (one parser), `http_stream.py` and `websocket_stream.py`
(one request). `limits.py` names every bound.

HTTP/1.1 and WebSocket only. HTTP/2 (ALPN and h2c) is off: consumers are SDKs that open HTTP/1.1
connections, one stream per connection keeps a slow reader's back pressure to itself, and a proxy in
front may still speak HTTP/2.
"""
