"""What `prefect deploy` leaves undone: work pools, forms that take no other parameters, automations.

    python -m flows.setup pools                          before it; PAHI_POOL_TYPE says of which type
    python -m flows.setup forms                          after it
    python -m flows.setup automations infra/automations.yaml

infra/setup.sh is all of it. Each may be run again, and changes what is not as it should be.
"""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.workers.utilities import get_default_base_job_template_for_infrastructure_type

from flows import common
from flows.doctor import POOLS
from pahi.errors import PahiError, UserError, first_line

FLOW: str = common.FLOW["name"]
TYPES = ("process", "kubernetes")
TEMPLATES = Path(__file__).parents[1] / "infra" / "kubernetes"


def pools(client: SyncPrefectClient, wanted: str) -> None:
    """Creates the pools, or gives those that are there this version's template; their limits and pauses stay.

    Raises UserError for a type that is not that of a pool that is there: it cannot be changed, and with the template of
    another type a pool would start nothing.
    """
    for name in POOLS:
        try:
            there = client.read_work_pool(name).type
        except ObjectNotFound:
            there = ""
        kind = wanted or there or "process"
        if kind != (there or kind):
            mend = f"`prefect work-pool delete {name}` first"
            raise UserError(f"PAHI_POOL_TYPE={kind}, and the pool {name} is of type {there}: {mend}")
        template = _template(name, kind)
        if not there:
            client.create_work_pool(WorkPoolCreate(name=name, type=kind, base_job_template=template))
        elif kind in TYPES:
            client.update_work_pool(name, WorkPoolUpdate(base_job_template=template))
        print(f"work pool {name}: {kind}, {'updated' if there else 'created'}")


def _template(name: str, kind: str) -> dict[str, Any]:
    if kind == "kubernetes":
        found: dict[str, Any] = json.loads((TEMPLATES / f"{name}.json").read_text(encoding="utf-8"))
        return found
    return asyncio.run(get_default_base_job_template_for_infrastructure_type(kind)) or {}


def forms(client: SyncPrefectClient) -> None:
    """Has the server refuse parameters that a flow does not have: Prefect's schema lets any further name through."""
    for deployment in client.read_deployments(flow_filter=FlowFilter(name=FlowFilterName(any_=[FLOW]))):
        schema = deployment.parameter_openapi_schema or {}
        if schema.get("additionalProperties") is not False:
            # Nothing else is sent, so nothing else is changed.
            closed = DeploymentUpdate(parameter_openapi_schema={**schema, "additionalProperties": False})
            client.update_deployment(deployment.id, closed)
        print(f"{FLOW}/{deployment.name}: takes no other parameters")


def automations(client: SyncPrefectClient, file: Path) -> None:
    """One automation of each name that the file holds, as the file says."""
    for written in yaml.safe_load(file.read_text(encoding="utf-8"))["automations"]:
        automation = AutomationCore.model_validate(written)
        for old in client.read_automations_by_name(automation.name):
            client.delete_automation(old.id)
        client.create_automation(automation)
        print(f"automation {automation.name}: {'on' if automation.enabled else 'off'}")


def main(arguments: list[str]) -> None:
    wanted = os.environ.get("PAHI_POOL_TYPE", "")
    if wanted not in ("", *TYPES):
        raise UserError(f"PAHI_POOL_TYPE={wanted}: expected {' or '.join(TYPES)}")
    with get_client(sync_client=True) as client:
        if arguments == ["pools"]:
            pools(client, wanted)
        elif arguments == ["forms"]:
            forms(client)
        elif len(arguments) == 2 and arguments[0] == "automations":
            automations(client, Path(arguments[1]))
        else:
            raise UserError("expected pools, forms or automations FILE")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except PahiError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception as error:
        print(f"error: {first_line(error)}", file=sys.stderr)
        sys.exit(1)
