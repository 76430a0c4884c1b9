"""Models in other formats: Hugging Face directories."""
