"""What a run is (plan), how its rounds move (rounds) and how updates become a model (aggregate)."""
