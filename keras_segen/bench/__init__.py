"""How fast: what a step, a prediction and a batch cost on this machine."""
