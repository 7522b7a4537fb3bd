"""Has the server refuse parameters that a flow does not have: `python -m flows.forms`, after each `prefect deploy`.

Prefect's deploy says nothing of names that are not in the form, and so lets them through; the run then ends at once.
"""

import sys
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.filters import FlowFilter, FlowFilterName

from pahi.errors import first_line

FLOW = "pahi"


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a form that takes no other parameters."""
    return {**schema, "additionalProperties": False}


def close() -> list[str]:
    """Closes the form of every deployment on the server that PREFECT_API_URL names; the names of those it changed."""
    changed = []
    with get_client(sync_client=True) as client:
        for deployment in client.read_deployments(flow_filter=FlowFilter(name=FlowFilterName(any_=[FLOW]))):
            schema = deployment.parameter_openapi_schema or {}
            if schema != closed(schema):
                # Nothing else is sent, so nothing else is changed.
                client.update_deployment(deployment.id, DeploymentUpdate(parameter_openapi_schema=closed(schema)))
                changed.append(f"{FLOW}/{deployment.name}")
    return sorted(changed)


if __name__ == "__main__":
    try:
        names = close()
    except Exception as error:
        print(f"error: the server did not take the forms: {first_line(error)}", file=sys.stderr)
        sys.exit(1)
    print(f"parameters by other names are refused by {', '.join(names) or 'every deployment already'}")
