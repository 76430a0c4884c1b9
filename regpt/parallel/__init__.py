"""The model and its optimizer on one or several ranks: data parallel (DDP) or sharded (FSDP)."""
