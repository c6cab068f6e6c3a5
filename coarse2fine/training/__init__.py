"""Training instances for agents, from labelled cases."""
