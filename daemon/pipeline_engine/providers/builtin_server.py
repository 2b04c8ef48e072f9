"""The model server of the profile `builtin`: llama.cpp's own, from the wheel of xllamacpp, as a program.

    python builtin_server.py --model FILE.gguf --port N [--alias NAME] [--embedding] [--context TOKENS] [--parallel N] [--threads N]

It listens on 127.0.0.1 and speaks OpenAI's protocol under `/v1`; `/health` answers 200 when the model is loaded.
"""

from __future__ import annotations

import argparse
import os
import signal

import xllamacpp


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description="Serves one model with llama.cpp.")
    parser.add_argument("--model", required=True, metavar="FILE.gguf")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--alias", help="the name of the model in requests and answers")
    parser.add_argument("--embedding", action="store_true", help="serve embeddings instead of chats")
    parser.add_argument("--context", type=int, default=8192, help="tokens, shared by the parallel requests")
    parser.add_argument("--parallel", type=int, default=2, help="requests that are answered at the same time")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()

    stop_signals = {signal.SIGTERM, signal.SIGINT}
    # Before the server starts its threads, which inherit this: only this thread shall take the signals.
    signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals)
    params = xllamacpp.CommonParams()
    params.model.path = given.model
    params.hostnames = ["127.0.0.1"]
    params.port = given.port
    params.n_ctx = given.context
    params.n_parallel = given.parallel
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = given.threads
    params.cpuparams_batch.n_threads = given.threads
    params.endpoint_slots = True
    if given.alias:
        params.model_alias = {given.alias}
    if given.embedding:
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    server = xllamacpp.Server(params)
    signal.sigwait(stop_signals)
    # There is nothing to save, and unloading a model can take seconds.
    del server
    os._exit(0)


if __name__ == "__main__":
    main()
