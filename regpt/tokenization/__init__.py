"""Tokenizers other than GPT-2's: OpenAI's later ones, tokenizer.json files, and training of new ones."""
