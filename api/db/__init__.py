"""Tables, connections, wake-ups, the outbox."""
