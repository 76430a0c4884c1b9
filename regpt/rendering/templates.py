"""Fill the Jinja templates of reports and comparisons."""

from jinja2 import Environment, PackageLoader, StrictUndefined

from regpt.rendering.markdown import escaped


def render_template(package: str, name: str, values: dict[str, object]) -> str:
    """Fill the template `name` in `package`. Its filter `escaped` escapes text for Markdown.

    Raises jinja2.UndefinedError if the template uses a value that is missing.
    """
    environment = Environment(
        loader=PackageLoader(package, ""),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["escaped"] = escaped
    return environment.get_template(name).render(values)
