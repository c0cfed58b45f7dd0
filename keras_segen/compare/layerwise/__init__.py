"""Where two frameworks part, layer by layer and step by step."""
