"""Drawing tokens: how the next one is chosen from logits, and the decoder that rows of a batch share."""
