"""Recipes: configurations with a name, shipped with the package."""

from pathlib import Path

from highrank.errors import UserError

__all__ = ["find_recipe", "recipe_names"]


def find_recipe(name: str) -> Path:
    """The file of a recipe: a name of those shipped, or a path to a .toml file of one's own."""
    path = Path(name)
    if path.suffix == ".toml":
        if not path.is_file():
            raise UserError(f"recipe {name}: no such file", exit_code=2)
        return path
    from highrank.runs.config import nearest_spelling  # not for the help of a command, which lists the names

    shipped = {path.stem: path for path in _shipped()}
    if name not in shipped:
        raise UserError(
            f"recipe {name!r}: not known{nearest_spelling(name, sorted(shipped))} (or give the path of a .toml file)",
            exit_code=2,
        )
    return shipped[name]


def recipe_names() -> list[str]:
    return sorted(path.stem for path in _shipped())


def _shipped() -> list[Path]:
    package = Path(__file__).parent.parent
    # In an installed wheel the recipes lie inside the package, in a source tree beside src.
    for folder in (package / "recipes", package.parent.parent / "recipes"):
        if folder.is_dir():
            return list(folder.glob("*.toml"))
    return []
