#!/bin/sh
# Work pools, deployments and automations on the server that PREFECT_API_URL names. Run it again after every upgrade.
#
#     PAHI_POOL_TYPE=process or kubernetes: what the pools are; those that are there keep their type, new ones are process
#     PAHI_HOME, PAHI_NIGHTLY, PAHI_CHAIN: see prefect.yaml
set -eu
cd "$(dirname "$0")/.."
# The Python that prefect runs in.
python="$(dirname "$(command -v prefect)")/python"

"$python" -m flows.setup pools
prefect --no-prompt deploy --all
"$python" -m flows.setup forms
"$python" -m flows.setup automations infra/automations.yaml
