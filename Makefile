.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= $(or $(DUNNOCK_VENV),.venv)
RUN := $(VENV)/bin/python
FLASK := $(RUN) -m flask --app app
export DUNNOCK_VENV := $(VENV)
export PYTHONUNBUFFERED := 1
export HF_HUB_DISABLE_PROGRESS_BARS := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help setup setup-dev base demo run migrate cycle collect rollback import import-tasks export bundle serve-bundle seed person key test test-slow check fix messages trial search bench-judge bench-engine bench-engines bench-annotation bench-training bench-robustness bench-serving bench-garak screenshots clean

help:            ## what there is to make
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/: .*## /\t/' | expand -t 18

setup:           ## virtual environment, requirements, base model
	@$(PYTHON) commands/bootstrap.py

setup-dev:       ## the same with what tests and checks need
	@$(PYTHON) commands/bootstrap.py --dev

base: setup      ## fetch and unpack the base model
	@$(RUN) -m policy.base
	@$(RUN) -m reward.guard.encoder

demo: setup      ## one unattended round of the loop, with a report (AGAIN=1, PAIRS=file)
	@$(RUN) -m commands.demo $(if $(AGAIN),--again) $(if $(PAIRS),--pairs "$(PAIRS)")

run: setup       ## migrate, start web, engine and worker, print the URLs
	@$(RUN) -m commands.run

migrate: setup   ## bring the database up to date
	@$(FLASK) migrate

cycle: setup     ## run a round of the loop now (an engine must be up: make run)
	@$(FLASK) cycle

collect: setup   ## queue the active policy's answers to the seed prompts for people to judge (needs make run)
	@$(FLASK) collect

rollback: setup  ## bring the former policy version back (TO=name, REASON=text)
	@$(FLASK) rollback $(if $(TO),--to "$(TO)") $(if $(REASON),--reason "$(REASON)")

import: setup    ## import preference pairs (FILE=path, LIMIT=n)
	@test -n "$(FILE)" || { echo "Say which file: make import FILE=pairs.jsonl" >&2; exit 2; }
	@$(FLASK) import "$(FILE)" $(if $(LIMIT),--limit "$(LIMIT)")

import-tasks: setup  ## import tasks with their judgments (FILE=path, FORM=auto, DRY=1)
	@test -n "$(FILE)" || { echo "Say which file: make import-tasks FILE=tasks.jsonl" >&2; exit 2; }
	@$(FLASK) import-tasks "$(FILE)" --form "$(or $(FORM),auto)" $(if $(DRY),--dry-run)

export: setup    ## export preferences, or as FORM=unpaired, tasks, label-studio (FILE=path)
	@test -n "$(FILE)" || { echo "Say where to: make export FILE=mine.jsonl" >&2; exit 2; }
	@$(FLASK) export "$(FILE)" --form "$(or $(FORM),preference)"

bundle: setup    ## one signed file with the active version, its rules and its guard (FILE=path, FORM=gguf, POLICY=name, TENANT=key)
	@test -n "$(FILE)" || { echo "Say where to: make bundle FILE=v1.bundle" >&2; exit 2; }
	@$(FLASK) bundle "$(FILE)" --form "$(or $(FORM),gguf)" $(if $(POLICY),--policy "$(POLICY)") $(if $(TENANT),--tenant "$(TENANT)")

serve-bundle:    ## verify such a file and serve it without network (FILE=path, KEY=public.pem, PORT=8080)
	@test -n "$(FILE)" -a -n "$(KEY)" || { echo "Say which: make serve-bundle FILE=v1.bundle KEY=public.pem" >&2; exit 2; }
	@$(PYTHON) commands/bootstrap.py --no-base
	@$(RUN) -m commands.serve_bundle "$(FILE)" --key "$(KEY)" $(if $(PORT),--port "$(PORT)")

seed: setup      ## fill a development database: people, tasks of every kind, judgments by scripts
	@$(RUN) -m commands.seed

person: setup    ## add somebody who signs in (LOGIN=name, ROLE=annotator)
	@test -n "$(LOGIN)" || { echo "Say who: make person LOGIN=name" >&2; exit 2; }
	@$(FLASK) person-add "$(LOGIN)" --role "$(or $(ROLE),annotator)"

key: setup       ## make an API key (LOGIN=name, SCOPES="chat feedback")
	@test -n "$(LOGIN)" || { echo "Say whose: make key LOGIN=admin" >&2; exit 2; }
	@$(FLASK) key-add "$(LOGIN)" $(if $(SCOPES),--scopes "$(SCOPES)")

test: setup-dev  ## everything the tests need, then checks and tests
	@$(MAKE) --no-print-directory check
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -m "not slow" -n logical --maxprocesses 4 --dist loadfile

test-slow: setup-dev  ## tests with the real 135M model
	@$(RUN) -m pytest -m slow

check:           ## lint, types, import rules
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy
	@$(VENV)/bin/lint-imports

fix:             ## format and mend what ruff can
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .

messages: setup-dev  ## bring the catalogues in pages/locale up to date with the texts of the pages
	@$(RUN) -m commands.messages

trial: setup     ## an update with other settings on held-out seed topics (SET="update.beta=0.2")
	@$(FLASK) trial $(if $(REWARD),--reward) $(foreach word,$(SET),--set '$(word)')

search: setup    ## settings tried out on held-out seed topics (OVER="update.beta=0.03..0.5:log", SET=, TRIALS=20)
	@$(FLASK) search $(if $(TRIALS),--trials $(TRIALS)) $(if $(OBJECTIVE),--objective $(OBJECTIVE)) \
		$(foreach word,$(OVER),--over '$(word)') $(foreach word,$(SET),--set '$(word)')

bench-judge: setup  ## the judge's error on the hand-labelled sets
	@$(RUN) -m evals.judge_error

bench-engine: base  ## tokens per second of the embedded engine, beside plain generate
	@$(RUN) -m bench.engine

bench-engines: setup-dev base  ## the engines of one machine beside each other: speed, and how near the base's texts they are (MORE="--repeats 5")
	@$(RUN) -m bench.engines $(MORE)

bench-annotation: setup-dev  ## latency and throughput of annotation, up to a million tasks, beside Label Studio and Potato
	@$(RUN) -m bench.annotation

bench-training: base  ## reward models, DPO and PPO beside TRL's stock trainers (DATA=pairs file, PARTS="reward dpo", MORE="--repeats 3")
	@$(RUN) -m bench.training $(if $(DATA),--data "$(DATA)") $(if $(PARTS),--parts $(PARTS)) $(MORE)

bench-robustness: setup  ## reward models under noise and attacks, with the defences on and off (MORE="--seeds 8")
	@$(RUN) -m bench.robustness $(MORE)

bench-serving: setup-dev base  ## the chat API beside LiteLLM, transformers serve and the engine alone (ROUND=var, MORE="--parts gateway")
	@$(RUN) -m bench.serving $(if $(ROUND),--round "$(ROUND)") $(MORE)

bench-garak: setup-dev base  ## garak's probes before and after a round, without and with the guard (ROUND=var, MORE="--prompts 4")
	@$(RUN) -m bench.garak --round "$(or $(ROUND),var)" $(MORE)

screenshots: setup-dev  ## pictures for README and documents, of sample rows (HERE=1: of the round made here, ONLY=names)
	@$(RUN) -m commands.screenshots $(if $(HERE),--here) $(if $(ONLY),--only $(ONLY))

clean:           ## remove the virtual environment (data in var/ stays)
	rm -rf $(VENV)
