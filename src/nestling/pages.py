"""HTML pages of one look: templates of this package that extend report/base.html, each one file that loads nothing."""

from jinja2 import Environment, PackageLoader


def page_environment(version: str) -> Environment:
    """The jinja2 environment of the package's templates; it escapes all texts. The version stands below each page."""
    loader = PackageLoader("nestling", ".")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.globals["version"] = version
    return environment
