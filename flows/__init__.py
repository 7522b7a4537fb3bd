"""Prefect: one file a deployment. Retries, progress and artifacts; what is computed is `pahi`'s."""
