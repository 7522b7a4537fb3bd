#!/bin/sh
# A worker of a process pool that can be told to stop:
#
#     sh infra/worker.sh --pool pahi-gpu --limit 1        # what `prefect worker start` takes
#
# On SIGTERM, which systemd, Docker and the notice of a spot machine send, Prefect's own worker kills its runs, and the
# server hears nothing of them. Here the runs are told first: they say so to the server, and infra/automations.yaml
# returns them to the queue. PAHI_STOP_SECONDS (60) is how long they may take.
set -u
# In a session of its own: a Ctrl-C or a signal to the whole group reaches this script alone.
setsid prefect worker start "$@" &
worker=$!

stop() {
  trap '' TERM INT
  # Held, it takes no other run meanwhile. What has ended stays as a zombie, since nobody asks how.
  kill -STOP "$worker"
  runs="$(cat "/proc/$worker/task"/*/children)"
  for run in $runs; do kill -TERM "$run" 2>/dev/null; done
  left="${PAHI_STOP_SECONDS:-60}"
  for run in $runs; do
    while [ "$left" -gt 0 ] && grep -qs '^State:[[:space:]]*[^Z[:space:]]' "/proc/$run/status"; do
      sleep 1
      left=$((left - 1))
    done
  done
  for process in $runs "$worker"; do kill -KILL "$process" 2>/dev/null; done
  exit 0
}

trap stop TERM INT
wait "$worker"
