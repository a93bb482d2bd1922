"""The use cases: at an edge admit, choose, relay and fail over; at a provider admit and serve.

Start with `inference` (the vocabulary), then `dispatcher` (at an edge) and `serving` (at a
provider).
"""
