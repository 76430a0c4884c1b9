"""Validation loss, multiple-choice scoring and sampling."""
