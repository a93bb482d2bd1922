"""Getting a lone exception out of the groups that nurseries put round it."""

from __future__ import annotations


def only_leaf(group: BaseExceptionGroup[BaseException]) -> BaseException | None:
    """The exception that is alone at the bottom of nested groups, if there is just one."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        if len(error.exceptions) != 1:
            return None
        error = error.exceptions[0]
    return error
