"""The composition root: configuration in, running node out. Nothing else imports `providers`.

Start with `node`.
"""
