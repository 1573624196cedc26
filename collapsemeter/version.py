"""The version, which a report and a page name; `pyproject.toml` has the same."""

__version__ = "0.1.0"
