#!/usr/bin/env bash
# The main job on the embedded default, end to end: build the models, search, look, export.
# Called by `make demo`; needs `evomerge` on the PATH, two CPU cores and about ten minutes.
set -euo pipefail
cd "$(dirname "$0")/.."

started=$SECONDS
step() { printf '\n\033[1m== %s\033[0m   (%d s)\n' "$*" "$((SECONDS - started))"; }

step "1. The zoo: a base model and three experts, trained here (kept for the next time)"
evomerge zoo

step "2. CMA-ES over one coefficient per block of layers and expert: 60 trials"
evomerge search run_dir=runs/demo n_trials=60

step "3. Export the best merge as a checkpoint"
evomerge export runs/demo --pick best --out runs/demo-best --overwrite

step "4. NSGA-II over the same space: 24 trials, a Pareto front instead of one best point"
evomerge search run_dir=runs/demo-pareto optimizer=nsga2 optimizer.pop_size=8 n_trials=24 \
  n_finalists=3 '~objective.code_choice' '~objective.prose_choice' >/dev/null

step "5. Export the point of the front that a preference chooses: arithmetic counts twice"
evomerge export runs/demo-pareto --pick weights=math:2,code:1,prose:1 --out runs/demo-math --overwrite

step "Done"
evomerge report runs/demo --brief
printf 'report      runs/demo/report.html (front: runs/demo-pareto/report.html)\n'
printf 'checkpoint  runs/demo-best (by preference: runs/demo-math)\n'
