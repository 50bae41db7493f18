"""Check that a device gives packed pairs the scores that they have alone, and say which path computes them.

    python scripts/check_device.py --model_name_or_path my-scorer
    python scripts/check_device.py --model_name_or_path minilm --compute_dtype bfloat16

On a GPU or TPU every scorer makes this check by itself before its first scores are used. The exit code is 1 where it
fails. An encoder without a head does, since the check has one of its own.
"""

import logging
import sys
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, before an installed copy

from cappy import Cappy, get_devices
from cappy.cli import flags
from cappy.model.devices import is_first_process
from cappy.model.self_check import refuse_failed


def main(
    model_name_or_path='btan2/cappy-large',  # hub name or folder of the scorer
    n_model_shards: flags.Count = 1,  # devices over which each parameter is split
    compute_dtype: Literal['float32', 'bfloat16'] | None = None,  # default: float32 on a CPU, else bfloat16
    n_processes: flags.Count | None = None,  # hosts, as redco's Deployer takes them; so the next four
    host0_address: str | None = None,
    host0_port: flags.Port | None = None,
    process_id: flags.CountFrom0 | None = None,
    n_local_devices: flags.Count | None = None,
):
    """Check the device."""
    devices = get_devices(n_model_shards, n_processes, host0_address, host0_port, process_id, n_local_devices)
    scorer = Cappy.from_pretrained(model_name_or_path, devices=devices, compute_dtype=compute_dtype)
    found = scorer.self_check()
    refuse_failed(found)
    if is_first_process():
        print(found)


if __name__ == '__main__':
    logging.basicConfig(format='%(levelname)s: %(message)s', level=logging.WARNING)
    flags.run(main)
