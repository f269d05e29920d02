"""`bin/vllm serve` of the result, as a person starts it: from a cold start to completions over HTTP."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from .checking import Run, Wrong, check, moved
from .native import NOT_NATIVE, needs_compiler
from .server import Server, ServerError
from .tiny_llama import NEW, PROMPTS, Completion, as_text, as_tokens, completion, write

HEALTHY = 480.0  # seconds; on a server with 16 cores, all caches cold and without bytecode, it took 106
# The model is tiny, and the card may be shared with other checks: not nine tenths of its memory.
OPTIONS = ("--gpu-memory-utilization", "0.25", "--kv-cache-memory-bytes", str(64 << 20))


@check("serve.openai")
def openai(run: Run) -> None:
    """Time to /health and to the first token; completions of the tokens that `LLM.generate` must give."""
    if run.dry:
        _parse_options()
        return
    program = Path(run.facts.get("vllm_program") or Path(sys.executable).with_name("vllm"))
    serve(run, program, completion(run))


def _parse_options() -> None:
    """Let vLLM read the command line that `serve` uses; `Wrong` where it does not know an option."""
    # The second of each is where earlier releases have it.
    command_line = moved("vllm.entrypoints.common.cli_args", "vllm.entrypoints.openai.cli_args")
    arguments = moved("vllm.utils.argparse_utils", "vllm.utils")
    parser = command_line.make_arg_parser(arguments.FlexibleArgumentParser())
    try:
        parser.parse_args(["model", "--host", "127.0.0.1", "--port", "1", *OPTIONS])
    except SystemExit as error:
        raise Wrong(f"vllm serve does not take these options: {' '.join(OPTIONS)}") from error


def serve(run: Run, program: Path, task: Completion) -> None:
    """Start `program`, ask it for the task's completions, and end it."""
    with tempfile.TemporaryDirectory() as folder:
        home, model = Path(folder) / "home", Path(folder) / "model"
        home.mkdir()
        write(model, task.parameters)
        prompts = [as_text(prompt) for prompt in task.prompts]
        try:
            with Server(program, model, home, OPTIONS) as server:
                run.fact(health_s=round(server.wait_until_healthy(HEALTHY), 2))
                run.fact(first_token_s=round(server.first_token(prompts[0]), 4))
                run.case(
                    f"{PROMPTS} prompts at once, {NEW} tokens each",
                    partial(_completions, server, prompts),
                    task.expected,
                    0.0,
                    timed=False,
                )
        except ServerError as error:
            raise Wrong(NOT_NATIVE if needs_compiler(str(error)) else str(error)) from error


def _completions(server: Server, prompts: Sequence[str]) -> torch.Tensor:
    """The token ids [prompts, NEW] that the server completes the prompts with, all asked at once."""
    with ThreadPoolExecutor(len(prompts)) as pool:
        texts = list(pool.map(lambda prompt: server.complete(prompt, NEW), prompts))
    rows = [as_tokens(text) for text in texts]
    for row, text in zip(rows, texts, strict=True):
        if len(row) != NEW:
            raise Wrong(f"a completion of {NEW} tokens is {text!r}")
    return torch.tensor(rows)
