"""Export a model for other programs: a Hugging Face directory, checked after it is written."""
