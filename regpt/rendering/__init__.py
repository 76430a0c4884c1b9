"""Figures, Markdown and HTML that reports share."""
