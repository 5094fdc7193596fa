"""Checks JSON values of unknown origin against the types that the reader expects."""

import types
from typing import Any, get_args, get_origin


def check_form(values: dict[str, Any], forms: dict[str, Any]) -> None:
    """Checks that `values` has the fields of `forms`, each of its type.

    Args:
      forms: field → its type, from `str`, `int`, `float`, `None`, `Any`, `list[…]`, `dict[str, …]` and unions of these.

    Raises:
      ValueError: naming the fields.
    """
    missing, unknown = sorted(forms.keys() - values.keys()), sorted(values.keys() - forms.keys())
    if missing or unknown:
        raise ValueError(f"missing fields {missing}, unknown fields {unknown}")
    for name, form in forms.items():
        if not _has_form(values[name], form):
            raise ValueError(
                f"the field {name} has the wrong form, expected {form if get_args(form) else form.__name__}"
            )


def _has_form(value: Any, form: Any) -> bool:
    arguments = get_args(form)
    if isinstance(form, types.UnionType):
        return any(_has_form(value, alternative) for alternative in arguments)
    if get_origin(form) is list:
        return type(value) is list and all(_has_form(item, arguments[0]) for item in value)
    if get_origin(form) is dict:
        return type(value) is dict and all(_has_form(item, arguments[1]) for item in value.values())
    return form is Any or type(value) is form
