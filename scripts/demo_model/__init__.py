"""How the demo model was made: data generator, training, export and scores.

Not imported by the package. Start reading at `README.md`, then `dialogue.py`.
"""
