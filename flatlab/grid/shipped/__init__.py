"""The grids that come with flatlab, one TOML file each."""

from importlib.resources import files


def shipped_grids() -> list[str]:
    """Names of the grids that come with flatlab."""
    names = (file.name for file in files(__name__).iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def shipped_grid_text(name: str) -> str:
    """The TOML of one of them."""
    return files(__name__).joinpath(f"{name}.toml").read_text(encoding="utf-8")
