"""Those who work for the coordinator: Celery workers, the site agent, and the HTTP client."""
