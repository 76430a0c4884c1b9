"""An endpoint for OpenAI clients: `regpt serve MODEL` answers /v1/models and /v1/completions."""
