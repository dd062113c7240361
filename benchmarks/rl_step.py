"""Speed of one RL step against TRL's GRPOTrainer: same model, prompts, answer lengths and number of updates.

    python benchmarks/rl_step.py [--peer-python PYTHON] [--steps 4] [--at-least 2.5]

A step is: sample 8 x 8 answers, reward them, update. Two cases: the updates of the `quick` experiment (4 mini-batches,
2 epochs) and one update. The model is an untrained tiny one, whose answers practically never end before the limit, so
that both sides process the same number of tokens; the reward is a hash of the answer, so that every group has a signal
and nothing can be skipped. Prints CPU seconds a step of both and their ratio; exit status 1 below ``--at-least``.

TRL belongs into an environment of its own (``pip install torch==2.13.0 transformers==5.23.0 trl==1.16.0``); name its
interpreter with ``--peer-python``. Its gradient checkpointing and mixed precision are off, and it has no KL term.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

CASES = {"4 mini-batches x 2 epochs": (4, 2), "1 update": (1, 1)}


def main() -> int:
    options = _options()
    if options.peer:
        return _peer(json.loads(Path(options.peer).read_text()))
    worst = float("inf")
    with tempfile.TemporaryDirectory() as folder:
        for title, (minibatches, epochs) in CASES.items():
            job = _job(Path(folder) / title.replace(" ", "_"), minibatches, epochs, options)
            ours = _ours(job)
            theirs = _run_peer(job, options.peer_python)
            worst = min(worst, theirs["seconds"] / ours["seconds"])
            print(
                f"{title}: restool {ours['seconds']:.2f} (sampling {ours['sample']:.2f}), "
                f"TRL {theirs['seconds']:.2f} CPU seconds a step, ratio {theirs['seconds'] / ours['seconds']:.2f} "
                f"(mean answer {ours['length']:.1f} and {theirs['length']:.1f} tokens)"
            )
    return 0 if worst >= options.at_least else 1


def reward(answer: str) -> float:
    """Any number that differs between answers."""
    return zlib.crc32(answer.encode("utf-8", "replace")) / 2**32


# --- restool ---------------------------------------------------------------------------------------------------


def _job(folder: Path, minibatches: int, epochs: int, options: argparse.Namespace) -> dict:
    """Prepared data, model and settings of one case; everything that the peer needs, too."""
    from restool.data import rows, synthetic
    from restool.experiments import compose_run
    from restool.models import chat, loading, tiny

    overrides = [
        "backend.device=cpu",
        "data.synthetic.train_rows=64",
        "data.synthetic.demonstrations=400",
        f"training.rl.minibatches={minibatches}",
        f"training.rl.epochs={epochs}",
        f"training.rl.max_new_tokens={options.answer_tokens}",
        f"training.rl.steps={options.steps + 1}",
    ]
    settings = compose_run(overrides)
    splits, _ = synthetic.generate(settings.data.synthetic)
    rows.write_rows(folder / "train.parquet", splits["train"])
    texts = [text for row in splits["sft"] for text in (row.system, row.user, row.output)]
    tokenizer = tiny.train_tokenizer(texts, settings.model.tiny.vocabulary)
    loading.save(tiny.build_tiny(settings.model.tiny, tokenizer), tokenizer, folder / "model")
    prompts = [tokenizer.decode(chat.prompt_ids(tokenizer, row.system, row.user)) for row in splits["train"]]
    rl = settings.training.rl
    return {
        "folder": str(folder),
        "overrides": overrides,
        "prompts": prompts,
        "steps": options.steps,
        "threads": options.threads,
        "minibatches": minibatches,
        "epochs": epochs,
        "samples": rl.samples,
        "answers": rl.prompts * rl.samples,
        "answer_tokens": rl.max_new_tokens,
        "learning_rate": rl.learning_rate,
        "gradient_clip": rl.gradient_clip,
    }


def _ours(job: dict) -> dict[str, float]:
    import torch

    from restool import algorithms
    from restool.backends.local.rl import Learner
    from restool.backends.local.rollouts import Collector
    from restool.backends.local.session import Session
    from restool.experiments import compose_run
    from restool.runs import RunDirectory

    settings = compose_run(job["overrides"])
    folder = Path(job["folder"])
    session = Session.open(RunDirectory(folder), settings, folder / "model", print)
    torch.set_num_threads(job["threads"])
    collector, learner = Collector(session, folder), Learner(session, algorithms.get("grpo"))
    total, sampling, tokens = 0.0, 0.0, 0
    for step in range(1, job["steps"] + 2):
        begin = time.process_time()
        sampled = collector.sample(step)
        middle = time.process_time()
        answers = collector.score(sampled)
        rewards = [reward(text) for text in answers.completions]
        answers.batch.reward_B.copy_(torch.tensor(rewards))
        learner.update(step, answers, learner.advantages(answers), learner.weights(answers))
        end = time.process_time()
        if step > 1:  # the first step warms up
            total, sampling = total + end - begin, sampling + middle - begin
            tokens += int(answers.batch.mask_BT.sum())
    steps = job["steps"]
    return {"seconds": total / steps, "sample": sampling / steps, "length": tokens / steps / job["answers"]}


# --- TRL -------------------------------------------------------------------------------------------------------


def _run_peer(job: dict, python: str) -> dict[str, float]:
    path = Path(job["folder"]) / "job.json"
    path.write_text(json.dumps(job))
    fixed = {"OMP_NUM_THREADS": str(job["threads"]), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [python, __file__, "--peer", str(path)], capture_output=True, text=True, env=os.environ | fixed, check=False
    )
    if done.returncode:
        sys.exit(f"the peer failed; is trl installed for {python}?\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _peer(job: dict) -> int:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(job["threads"])
    folder = Path(job["folder"]) / "model"
    updates = job["minibatches"] * job["epochs"]
    marks: list[float] = []
    lengths: list[int] = []

    class Mark(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step % updates == 0:
                marks.append(time.process_time())

    def score(completions, completion_ids, **_):
        lengths.extend(map(len, completion_ids))
        return [reward(text) for text in completions]

    config = GRPOConfig(
        output_dir=str(Path(job["folder"]) / "trl"),
        per_device_train_batch_size=job["answers"] // job["minibatches"],
        steps_per_generation=job["minibatches"],
        num_iterations=job["epochs"],
        num_generations=job["samples"],
        gradient_accumulation_steps=1,
        max_steps=(job["steps"] + 1) * updates,
        max_completion_length=job["answer_tokens"],
        temperature=1.0,
        learning_rate=job["learning_rate"],
        max_grad_norm=job["gradient_clip"],
        beta=0.0,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        reward_funcs=score,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": job["prompts"]}),
        processing_class=AutoTokenizer.from_pretrained(folder, padding_side="left"),
        callbacks=[Mark()],
    )
    trainer.train()
    seconds = (marks[-1] - marks[0]) / job["steps"]
    print(json.dumps({"seconds": seconds, "length": sum(lengths) / len(lengths)}))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter of an environment with trl")
    parser.add_argument("--steps", type=int, default=4, help="steps measured, after one that warms up")
    parser.add_argument("--answer-tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--at-least", type=float, default=2.5, help="ratio below which the exit status is 1")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
