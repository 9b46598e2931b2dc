"""What /synthesize costs: rows a second beside the bare decoder with the same writer, a short
answer, memory from 10^4 to 10^7 rows, and four streams at once.

Real processes (Postgres with fsync, Valkey, coordinator, Celery worker, agents) on this machine.
"""
