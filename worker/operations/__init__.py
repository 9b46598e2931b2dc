"""The coordinator's HTTP operations as typed methods, one module for each audience.

How bytes travel is ``worker.transport``'s; ``worker.client.CoordinatorClient`` has all of them.
Operators' and data scientists' calls return plain JSON objects; whatever workers and agents
exchange are the messages of ``core.wire``.
"""
