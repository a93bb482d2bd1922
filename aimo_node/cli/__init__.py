"""The command line: one file per command, each with a `command` object, imported when used.

Start with `main` (the group and the exit codes), then `flags` (flags that are settings) and
`running` (what all long-running commands share). Nothing heavy is imported at module level.
"""
