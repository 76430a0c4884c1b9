"""Decode with llama.cpp, for benchmarks/sampling.py, in any Python that has xllamacpp.

    python benchmarks/llama_cpp.py MODEL.gguf THREADS < requests

A request is a line of JSON: the tokens of the prompt, and how many are to follow. The answer is a line with the tokens
per second, prompt excluded, as llama.cpp counts them.
"""

import json
import sys
from importlib import import_module


def main() -> None:
    path, threads = sys.argv[1:]
    library = import_module("xllamacpp")
    parameters = library.CommonParams()
    parameters.model.path = path
    parameters.n_ctx, parameters.n_parallel, parameters.cpuparams.n_threads = 1024, 1, int(threads)
    server = library.Server(parameters)
    settings = {"temperature": 0.0, "repeat_penalty": 1.0, "ignore_eos": True, "cache_prompt": False}
    for line in sys.stdin:
        prompt, new = json.loads(line)
        answer = server.handle_completions({**settings, "prompt": prompt, "max_tokens": new})
        assert answer["timings"]["predicted_n"] == new, answer["timings"]
        print(answer["timings"]["predicted_per_second"], flush=True)


if __name__ == "__main__":
    main()
