import regpt

settings = {  # for seconds instead of minutes
    "run.max_steps": 4,
    "data.total_batch_tokens": 256,
    "model.block_size": 64,
    "evaluation.validation_batches": 1,
    "evaluation.hellaswag_every": 0,
}
recipe = regpt.load_recipe("demo-modern", settings)  # a shipped name or a .toml file
regpt.prepare(recipe)  # writes token shards to data/stdlib, once
run = regpt.train(recipe, "runs/short", progress=True)
print(run.validation_loss, run.tokens, run.history.steps[-1].loss)

run = regpt.resume(run, ["run.max_steps=6"])  # continues from the checkpoint of step 4
model = regpt.load_model(run)  # or a path: "runs/short", "runs/short/checkpoints/step_000004"
logits = model([model.tokenizer.encode("def main(")])  # one for each token of the vocabulary, after each token given
print(logits.shape, model.tokenizer.decode([int(logits[0, -1].argmax())]))
print(regpt.generate(model, "def main(", tokens=20, seed=1)[0])
for result in regpt.evaluate(model, ["validation", "hellaswag"], items=8):
    print(result.task, result.metric, result.value, result.error)

other = regpt.train(regpt.load_recipe("demo-classic", settings), "runs/short-classic")
print(regpt.report(run, against=[other], html=True))
print(regpt.compare(run, other))

try:
    regpt.load_recipe("demo-modern", {"run.max_step": 4})
except regpt.UserError as error:
    print(error.problem, error.fix, sep="\n")
