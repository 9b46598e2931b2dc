"""What the federation costs: update ingest, a round of 1,000 clients, the overhead of a round of
ten real agents, and cost against size.

Real processes (Postgres with fsync, Valkey, coordinator, Celery worker, agents) on this machine.
"""
