"""Who knows whom: what providers announce, what relays pass on, what edges learn."""
