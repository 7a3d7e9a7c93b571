"""The model card of a run, and pushing its folder to the Hub."""
