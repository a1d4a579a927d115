"""Pictures are drawn by matplotlib, which only the extra `pictures` installs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure(**settings: Any) -> Figure:
    """An empty `matplotlib.figure.Figure`.

    Raises `ModuleNotFoundError` that says how to install matplotlib where it is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "pictures need matplotlib: pip install 'padst_fx[pictures]'", name=error.name
        ) from error
    return Figure(**settings)
