"""What `aimo doctor` does: looks at a node layer by layer, and names what is wrong.

Every check is a probe, which looks and has a limited time, and a judgement, which is pure.
"""
