"""Open an exported model in one other program, and print what it computes as a line of JSON.

benchmarks/interop.py starts this file with the Python that has the program, so it imports nothing of regpt.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

# folder, gguf, prompts (token ids), texts (hostile), new (tokens), logits (file to write), and of a chat model
# conversations (hostile) and questions
Asked = dict[str, Any]
Answer = dict[
    str, Any
]  # tokens or continuations of each prompt, ids of each text, chat_ids of each conversation, answers


def transformers(asked: Asked) -> Answer:
    """transformers, with torch: logits, greedy tokens, and the tokenizer on hostile text."""
    library, numpy = import_module("transformers"), import_module("numpy")
    library.logging.set_verbosity_error()
    torch = import_module("torch")
    model = library.AutoModelForCausalLM.from_pretrained(asked["folder"], trust_remote_code=True).eval()
    tokenizer = library.AutoTokenizer.from_pretrained(asked["folder"])
    options = {"max_new_tokens": asked["new"], "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    tokens, logits = [], []
    with torch.no_grad():
        for prompt in asked["prompts"]:
            row = torch.tensor([prompt])
            logits.append(model(row).logits[0, -1].float().numpy())
            tokens.append(
                model.generate(row, attention_mask=torch.ones_like(row), **options)[0, len(prompt) :].tolist()
            )
    numpy.save(asked["logits"], numpy.stack(logits))
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in asked["texts"]]
    texts = [tokenizer.decode(row) for row in ids]
    chat = {"add_generation_prompt": True, "tokenize": True, "return_dict": False}
    chat_ids = [list(tokenizer.apply_chat_template(rows, **chat)) for rows in asked["conversations"]]
    answers = []
    for question in asked["questions"]:
        row = tokenizer.apply_chat_template(
            [question], add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        with torch.no_grad():
            found = model.generate(**row, max_new_tokens=asked["new"], do_sample=False)[0, row["input_ids"].shape[1] :]
        answers.append(tokenizer.decode(found, skip_special_tokens=True))
    return {
        "version": library.__version__,
        "tokens": tokens,
        "ids": ids,
        "texts": texts,
        "chat_ids": chat_ids,
        "answers": answers,
    }


def mlx_lm(asked: Asked) -> Answer:
    """mlx-lm, with mlx-cpu on Linux."""
    core, library, numpy = import_module("mlx.core"), import_module("mlx_lm"), import_module("numpy")
    model, _ = library.load(asked["folder"])
    tokens, logits = [], []
    for prompt in asked["prompts"]:
        row = list(prompt)
        for _ in range(asked["new"]):
            last = model(core.array([row]))[0, -1]
            if len(row) == len(prompt):
                logits.append(numpy.array(last.astype(core.float32)))
            row.append(int(core.argmax(last)))
        tokens.append(row[len(prompt) :])
    numpy.save(asked["logits"], numpy.stack(logits))
    return {"version": version("mlx-lm"), "tokens": tokens}


def ctranslate2(asked: Asked) -> Answer:
    """CTranslate2, by its converter."""
    library, converters = import_module("ctranslate2"), import_module("ctranslate2.converters.transformers")
    folder = Path(asked["folder"])
    into = folder.with_name(f"{folder.name}-ct2")
    converters.TransformersConverter(str(folder)).convert(str(into), force=True)
    stored = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    names = {number: name for name, number in stored["model"]["vocab"].items()}
    names |= {token["id"]: token["content"] for token in stored["added_tokens"]}
    generator = library.Generator(str(into))
    options = {"max_length": asked["new"], "beam_size": 1, "sampling_topk": 1, "include_prompt_in_result": False}
    found = [
        generator.generate_batch([[names[token] for token in prompt]], end_token=[], **options)[0]
        for prompt in asked["prompts"]
    ]
    return {"version": library.__version__, "tokens": [list(one.sequences_ids[0]) for one in found]}


def onnx(asked: Asked) -> Answer:
    """torch.onnx.export, then onnxruntime."""
    torch, library, numpy = import_module("torch"), import_module("transformers"), import_module("numpy")
    runtime = import_module("onnxruntime")
    model = library.AutoModelForCausalLM.from_pretrained(asked["folder"], trust_remote_code=True).eval()
    path = str(Path(asked["folder"]).with_suffix(".onnx"))

    def forward(self: Any, input_ids: Any) -> Any:
        return self.model(input_ids, use_cache=False).logits

    alone = type("Logits", (torch.nn.Module,), {"forward": forward})()
    alone.model = model
    shapes = {"input_ids": {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}}
    example = {"input_ids": torch.tensor([asked["prompts"][0]] * 2)}
    torch.onnx.export(alone, kwargs=example, f=path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    session = runtime.InferenceSession(path)
    tokens, logits = [], []
    for prompt in asked["prompts"]:
        row = list(prompt)
        for _ in range(asked["new"]):
            last = session.run(None, {session.get_inputs()[0].name: numpy.array([row], dtype=numpy.int64)})[0][0, -1]
            if len(row) == len(prompt):
                logits.append(last)
            row.append(int(last.argmax()))
        tokens.append(row[len(prompt) :])
    numpy.save(asked["logits"], numpy.stack(logits))
    return {"version": f"{torch.__version__}, onnxruntime {runtime.__version__}", "tokens": tokens}


def mistralrs(asked: Asked) -> Answer:
    """mistral.rs, from the directory."""
    library = import_module("mistralrs")
    runner = library.Runner(which=library.Which.Plain(model_id=asked["folder"]))
    found = []
    for text in asked["prompt_texts"]:
        request = library.CompletionRequest(model="m", prompt=text, max_tokens=asked["new"], temperature=0.0, top_k=1)
        found.append(runner.send_completion_request(request).choices[0].text)
    return {"version": version("mistralrs"), "continuations": found}


def llama_cpp(asked: Asked) -> Answer:
    """llama.cpp, through xllamacpp, from a GGUF file."""
    library = import_module("xllamacpp")
    parameters = library.CommonParams()
    parameters.model.path = asked["gguf"]
    parameters.n_ctx, parameters.n_parallel, parameters.cpuparams.n_threads = 0, 1, 1
    server = library.Server(parameters)
    request = {"max_tokens": asked["new"], "temperature": 0.0, "repeat_penalty": 1.0, "ignore_eos": True}
    found = [server.handle_completions({**request, "prompt": prompt}) for prompt in asked["prompts"]]
    texts = [one["choices"][0]["text"] for one in found]
    request["ignore_eos"] = False
    answers = [server.handle_chat_completions({**request, "messages": [one]}) for one in asked["questions"]]
    answered = [one["choices"][0]["message"]["content"] for one in answers]
    ids = [post(server, "tokenize", content=text, parse_special=True)["tokens"] for text in asked["texts"]]
    back = [post(server, "detokenize", tokens=row)["content"] for row in ids]
    tokenizer = {"ids": ids, "texts": back}
    return {"version": version("xllamacpp"), "continuations": texts, "answers": answered, **tokenizer}


def post(server: Any, path: str, **values: Any) -> Any:
    """Ask llama.cpp's server, which xllamacpp starts on this machine."""
    headers = {"Content-Type": "application/json"}
    request = Request(f"{server.listening_address}/{path}", json.dumps(values).encode(), headers)
    with urlopen(request) as answer:
        return json.load(answer)


def converter(asked: Asked) -> Answer:
    """llama.cpp's own converter, then llama.cpp."""
    path = Path(asked["folder"]).with_suffix(".converted.gguf")
    command = [sys.executable, "-m", "convert_hf_to_gguf", asked["folder"], "--outfile", str(path), "--outtype", "f32"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    found = llama_cpp({**asked, "gguf": str(path)})
    return {**found, "version": f"{version('convert-hf-to-gguf')} (package of August 2026)"}


PROBES: dict[str, Callable[[Asked], Answer]] = {
    "transformers": transformers,
    "mlx-lm": mlx_lm,
    "CTranslate2": ctranslate2,
    "torch.onnx": onnx,
    "mistral.rs": mistralrs,
    "llama.cpp": llama_cpp,
    "llama.cpp's converter": converter,
}

if __name__ == "__main__":
    given = json.loads(Path(sys.argv[2]).read_text("utf-8"))
    Path(sys.argv[3]).write_text(json.dumps(PROBES[sys.argv[1]](given)), "utf-8")
