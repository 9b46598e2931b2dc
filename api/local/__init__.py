"""All services on this machine: ``fedhypevae up``, ``down`` and ``status``."""
