"""The language between coordinator, workers and site agents: messages, task names, tensor files."""
