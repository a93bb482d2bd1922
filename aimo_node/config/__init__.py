"""Configuration: one tree of settings, read once from flags, environment, file and defaults.

Start with `settings` (every key, its meaning and default); `layers` reads the sources, `loading`
puts them together and knows where each value came from, `display` shows them without secrets.
"""
